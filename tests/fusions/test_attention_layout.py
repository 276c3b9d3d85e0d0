"""FlashAttention and PackedAttention without the copies around them, where a library has them."""

from __future__ import annotations

import re

import pytest

from tests.proving import prove_widening
from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})
BOTH = {"FlashAttention", "PackedAttention"}
HEADS = """
    {name}_rows = Reshape({name}_flat, [0, 0, {count}, 6])
    {name} = Transpose<perm=[0, 2, 1, 3]>({name}_rows)
"""
CORE = """
    kt = Transpose<perm=[0, 1, 3, 2]>({k})
    scores = MatMul(q, kt)
    scaled = Mul(scores, 0.4)
    logits = Add(scaled, mask)
    weights = Softmax<axis=-1>(logits)
    context = MatMul(weights, {v})
"""
BEHIND = """
    turned = Transpose<perm=[0, 2, 1, 3]>(context)
    y = Reshape(turned, [0, 0, -1])
"""
SPLIT = "q_flat, k_flat, v_flat = Split<axis=-1>(x, [24, 12, 12])\n"
COPIES = """
    {name}_one = Unsqueeze({name}, [2])
    {name}_five = Expand({name}_one, [1, 1, 2, 1, 1])
    {name}_heads = Reshape({name}_five, [0, 4, -1, 6])
"""


def packed(split: str = SPLIT, behind: str = BEHIND, **words: str) -> str:
    heads = "".join(
        HEADS.format(name=name, count=count) for name, count in (("q", 4), ("k", 2), ("v", 2))
    )
    copies = "".join(COPIES.format(name=name) for name in "kv")
    text = split + heads + copies + CORE.format(k="k_heads", v="v_heads") + behind
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def widened(text, library=BOTH, inputs="T[B, S, 48] x, T[B, 1, 1, S] mask", **options):
    return fuse_model(model(text, inputs, **options), library=library)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_one_projection_is_read_as_it_lies(dtype):
    outcome = widened(packed(), dtype=dtype)
    assert outcome.ops == ["PackedAttention", "Reshape"]
    assert len(outcome.node("PackedAttention").input) == 2
    assert outcome.counts == {"FlashAttention": 1, "PackedAttention": 1}
    outcome.same(*SIZES)


def test_a_result_by_heads_is_turned_behind_it():
    outcome = widened(packed(behind="y = Neg(context)\n"))
    assert outcome.ops == ["PackedAttention", "Transpose", "Neg"]
    outcome.same(*SIZES)


def test_without_a_mask():
    text = packed().replace("logits = Add(scaled, mask)", "logits = Identity(scaled)")
    outcome = widened(text, inputs="T[B, S, 48] x")
    assert outcome.ops == ["PackedAttention", "Reshape"]
    assert len(outcome.node("PackedAttention").input) == 1
    outcome.same(*SIZES)


def test_parts_that_something_else_reads_stay():
    outcome = widened(packed() + "z = Neg(k_rows)\n", outputs="T y, T z")
    assert "PackedAttention" in outcome.ops
    assert "Split" in outcome.ops
    outcome.same(*SIZES)


def test_another_order_is_left():
    text = packed(SPLIT.replace("q_flat, k_flat, v_flat", "q_flat, v_flat, k_flat"))
    outcome = widened(text)
    assert "PackedAttention" not in outcome.ops
    assert any("do not follow" in miss.reason for miss in outcome.fused.misses)
    outcome.same(*SIZES)


def test_a_fourth_part_is_left():
    split = "q_flat, k_flat, v_flat, more = Split<axis=-1>(x, [24, 12, 12, 6])\n"
    outcome = widened(
        packed(split) + "z = Neg(more)\n",
        inputs="T[B, S, 54] x, T[B, 1, 1, S] mask",
        outputs="T y, T z",
    )
    assert "PackedAttention" not in outcome.ops
    outcome.same(*SIZES)


APART = "T[B, S, 4, 6] q_rows, T[B, S, 2, 6] k_rows, T[B, S, 2, 6] v_rows, T[B, 1, 1, S] mask"
TURNED = "".join(f"{name} = Transpose<perm=[0, 2, 1, 3]>({name}_rows)\n" for name in "qkv")


def apart(turned: str = TURNED, behind: str = BEHIND) -> str:
    copies = "".join(COPIES.format(name=name) for name in "kv")
    return turned + copies + CORE.format(k="k_heads", v="v_heads") + behind


def layout(outcome) -> str:
    return outcome.attribute("FlashAttention", "layout").decode()


def test_transposes_around_it_go():
    outcome = widened(apart(), inputs=APART)
    assert outcome.ops == ["FlashAttention", "Reshape"]
    assert layout(outcome) == "BSHD,BSHD,BSHD,BSHD"
    outcome.same(*SIZES)


def test_each_operand_has_a_layout_of_its_own():
    turned = TURNED.replace("k = Transpose<perm=[0, 2, 1, 3]>(k_rows)", "k = Neg(k_rows)")
    inputs = APART.replace("[B, S, 2, 6] k_rows", "[B, 2, S, 6] k_rows")
    outcome = widened(apart(turned), inputs=inputs)
    assert outcome.ops == ["Neg", "FlashAttention", "Reshape"]
    assert layout(outcome) == "BSHD,BHSD,BSHD,BSHD"
    outcome.same(*SIZES)


def test_without_a_library_all_stays():
    for library in (None, {"Rope"}):
        outcome = widened(apart(), library, APART)
        assert outcome.ops.count("Transpose") == 4
        assert layout(outcome) == "BHSD"
        outcome.same(*SIZES)


def test_a_result_that_is_read_by_heads_too_keeps_its_layout():
    outcome = widened(apart(behind=BEHIND + "z = Neg(context)\n"), inputs=APART, outputs="T y, T z")
    assert layout(outcome) == "BSHD,BSHD,BSHD,BHSD"
    outcome.same(*SIZES)


def test_two_layers_share_one_layout():
    """One op has one definition in a model, so both keep what only one could drop."""
    second = apart(TURNED.replace("q = Transpose<perm=[0, 2, 1, 3]>(q_rows)", "q = Neg(other)"))
    for name in re.findall(r"(\w+) = ", second):
        second = re.sub(rf"\b{name}\b", f"second_{name}", second)
    second = second.replace("second_y", "z")
    inputs = APART + ", T[B, 4, S, 6] other"
    outcome = widened(apart() + second, inputs=inputs, outputs="T y, T z")
    found = [
        item.s.decode()
        for node in outcome.after.graph.node
        for item in node.attribute
        if item.name == "layout"
    ]
    assert found == ["BHSD,BSHD,BSHD,BSHD"] * 2
    outcome.same(*SIZES)


X = "T[B, S, 48] x, T[B, 1, 1, S] mask"
PROVEN = {"packed": ("PackedAttention", packed(), X), "apart": ("FlashAttention", apart(), APART)}


@pytest.mark.parametrize("case", PROVEN)
def test_it_is_proven(monkeypatch, case):
    op, text, inputs = PROVEN[case]
    found = prove_widening(monkeypatch, op, model(text, inputs))
    assert (found.matches, found.failed, found.whole) == (1, (), None)


@pytest.mark.parametrize(
    ("case", "right", "wrong"),
    [
        ("packed", "(k_rows)", "(v_rows)"),
        (
            "packed",
            "Concat<axis: int = 0>(q_count, kv_count",
            "Concat<axis: int = 0>(kv_count, q_count",
        ),
        (
            "apart",
            "k_heads = Transpose<perm: ints = [0, 2, 1, 3]>(k)",
            "k_heads = Transpose<perm: ints = [0, 2, 1, 3]>(v)",
        ),
    ],
)
def test_a_wrong_definition_is_refuted(monkeypatch, case, right, wrong):
    op, text, inputs = PROVEN[case]
    found = prove_widening(monkeypatch, op, model(text, inputs), right, wrong)
    assert [failure.kind for failure in found.failed] == [op]
