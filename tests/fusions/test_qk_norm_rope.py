"""QkNormRope: packed q, k, v to heads in one node, and only where an engine's library has it."""

from __future__ import annotations

import pytest

from tests.proving import prove_widening
from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})
CACHE = "T[B, 1, S, 6] cos, T[B, 1, S, 6] sin"
TURN = """
    NAME_low, NAME_high = Split<axis=-1, num_outputs=2>(IN)
    NAME_minus = Neg(NAME_high)
    NAME_turned = Concat<axis=-1>(NAME_minus, NAME_low)
    NAME_straight = Mul(IN, cos)
    NAME_across = Mul(NAME_turned, sin)
    OUT = Add(NAME_straight, NAME_across)
"""
PAIRS = TURN.replace(
    "NAME_low, NAME_high = Split<axis=-1, num_outputs=2>(IN)",
    "NAME_low = Slice(IN, [0], [6], [3], [2])\nNAME_high = Slice(IN, [1], [6], [3], [2])",
).replace(
    "NAME_turned = Concat<axis=-1>(NAME_minus, NAME_low)",
    "NAME_a = Unsqueeze(NAME_minus, [4])\nNAME_b = Unsqueeze(NAME_low, [4])\n"
    "NAME_c = Concat<axis=-1>(NAME_a, NAME_b)\nNAME_shape = Shape(IN)\n"
    "NAME_turned = Reshape(NAME_c, NAME_shape)",
)
NORM = """
    NAME_square = Mul(IN, IN)
    NAME_mean = ReduceMean(NAME_square, [-1])
    NAME_variance = Add(NAME_mean, EPS)
    NAME_root = Sqrt(NAME_variance)
    NAME_unit = Div(IN, NAME_root)
    OUT = Mul(NAME_unit, NAME_gamma)
"""
PART = """
    NAME_front = Slice(IN, [0], [4], [3])
    NAME_rest = Slice(IN, [4], [6], [3])
""" + TURN.replace("IN", "NAME_front").replace("OUT =", "NAME_moved =") + """
    OUT = Concat<axis=-1>(NAME_moved, NAME_rest)
"""  # fmt: skip
HEADS = "NAME_heads = Reshape(IN, [0, 0, COUNT, 6])\n"
SWAP = "OUT = Transpose<perm=[0, 2, 1, 3]>(IN)\n"


def steps(name: str, count: int, *parts: str, **words: str) -> str:
    """The statements from ``name``_flat to ``name``, one part behind the other."""
    text, source = "", f"{name}_flat"
    parts = (HEADS.replace("NAME_heads", "OUT").replace("COUNT", str(count)), *parts)
    for number, part in enumerate(parts):
        out = name if number == len(parts) - 1 else f"{name}_{number}"
        text += part.replace("IN", source).replace("OUT", out).replace("NAME", f"{name}{number}")
        source = out
    for word, value in words.items():
        text = text.replace(word, value)
    return text.replace(f"{name}1_gamma", f"{name}_gamma").replace(
        f"{name}2_gamma", f"{name}_gamma"
    )


def packed(q, k, v=(SWAP,), *, counts=(4, 2, 2), bias=False, **words):
    """The statements from x to q, k, and v; ``words`` are replaced."""
    widths = [6 * count for count in counts]
    text = "raw = MatMul(x, w)\n"
    text += "packed = Add(raw, b)\n" if bias else "packed = Identity(raw)\n"
    text += f"q_flat, k_flat, v_flat = Split<axis=-1>(packed, {widths})\n"
    words = {"EPS": "0.01", **words}
    return text + "".join(
        steps(name, count, *parts, **words)
        for name, count, parts in zip("qkv", counts, (q, k, v), strict=True)
    )


def widened(
    text, *, cache=CACHE, dtype="float", opset=18, outputs="T q, T k, T v", more="", width=48
):
    shapes = {"w": (5, width), "b": (width,), "q_gamma": (6,), "k_gamma": (6,), "v_gamma": (6,)}
    weights = {name: shape for name, shape in shapes.items() if f"{name})" in text}
    made = model(text, f"T[B, S, 5] x, {cache}{more}", outputs, weights, dtype, opset)
    return fuse_model(made, library={"QkNormRope"})


PLAIN = packed((SWAP, TURN), (SWAP, TURN))
NORMED = packed((SWAP, NORM, TURN), (SWAP, NORM, TURN))


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (PLAIN, 3),
        (packed((NORM, SWAP, TURN), (NORM, SWAP, TURN)), 5),
        (NORMED, 5),
        (packed((SWAP, TURN), (SWAP, TURN), bias=True), 4),
        (packed((SWAP, NORM, TURN), (SWAP, NORM, TURN), bias=True), 6),
        (packed((SWAP, PAIRS), (SWAP, PAIRS)), 3),
    ],
    ids=["plain", "normed first", "normed", "bias", "normed, bias", "pairs"],
)
def test_every_spelling_is_one_node(text, inputs, dtype):
    outcome = widened(text, dtype=dtype)
    assert outcome.ops == ["MatMul", "QkNormRope"]
    assert len(outcome.node("QkNormRope").input) == inputs
    assert outcome.attribute("QkNormRope", "num_heads") == 4
    assert outcome.attribute("QkNormRope", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_counts_stay_those_of_the_model():
    norms = {"RmsNorm": 2}
    assert widened(NORMED).counts == {"Rope": 2, "QkNormRope": 1, **norms}
    assert widened(PLAIN).counts == {"Rope": 2, "QkNormRope": 1}


def test_the_fused_graph_keeps_the_parts():
    shapes = {"w": (5, 48)}
    made = model(PLAIN, f"T[B, S, 5] x, {CACHE}", "T q, T k, T v", shapes)
    for library in (None, {"Rope"}):
        outcome = fuse_model(made, library=library)
        assert outcome.ops.count("Rope") == 2
        assert outcome.counts == {"Rope": 2}


def test_a_part_of_each_head():
    cache = "T[B, 1, S, 4] cos, T[B, 1, S, 4] sin"
    outcome = widened(packed((SWAP, PART), (SWAP, PART)), cache=cache)
    assert outcome.ops == ["MatMul", "QkNormRope"]
    assert outcome.attribute("QkNormRope", "rotary_dim") == 4
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["B, S, 1, 6", "1, S, 1, 6", "S, 1, 6", "1, 6"])
def test_turned_before_they_are_transposed(shape):
    cache = f"T[{shape}] cos, T[{shape}] sin"
    outcome = widened(packed((TURN, SWAP), (TURN, SWAP)), cache=cache)
    assert outcome.counts == {"Rope": 2, "QkNormRope": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["B, 1, S, 6", "1, 1, S, 6", "1, S, 6", "S, 6", "B, 1, 1, 6"])
def test_caches_of_every_shape(shape):
    outcome = widened(PLAIN, cache=f"T[{shape}] cos, T[{shape}] sin")
    assert outcome.ops == ["MatMul", "QkNormRope"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("counts", [(6, 1, 1), (2, 3, 3)])
def test_other_numbers_of_heads(counts):
    outcome = widened(packed((SWAP, TURN), (SWAP, TURN), counts=counts))
    assert outcome.counts["QkNormRope"] == 1
    outcome.same(*SIZES)


SLICES = """
    k_flat = Slice(packed, [24], [36], [2])
    q_flat = Slice(packed, [0], [24], [-1], [1])
    v_flat = Slice(packed, [-12], [9223372036854775807], [2])
"""


def sliced(slices: str, **options) -> str:
    text = packed((SWAP, TURN), (SWAP, TURN), **options)
    return text.replace("q_flat, k_flat, v_flat = Split<axis=-1>(packed, [24, 12, 12])", slices)


@pytest.mark.parametrize("bias", [False, True])
def test_taken_apart_by_slices(bias):
    """Phi-3 packs its projections itself."""
    outcome = widened(sliced(SLICES, bias=bias))
    assert outcome.ops == ["MatMul", "QkNormRope"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("[24], [36]", "[12], [24]"), ("[-12], [9223372036854775807]", "[24], [36]")],
)
def test_slices_that_do_not_take_all_are_left(right, wrong):
    outcome = widened(sliced(SLICES.replace(right, wrong)))
    assert outcome.counts == {"Rope": 2}
    outcome.same(*SIZES)


def test_opset_17():
    text = PLAIN.replace(", num_outputs=2", "")
    outcome = widened(text, opset=17)
    assert outcome.ops == ["MatMul", "QkNormRope"]
    outcome.same(*SIZES)


def test_one_cache_for_q_and_k_may_be_made_twice():
    """Each RotaryEmbedding gets caches of its own, which are one computation."""
    turn = "OUT = RotaryEmbedding(IN, cos, sin)\n"
    text = packed((SWAP, turn), (SWAP, turn))
    outcome = widened(text, cache="T[B, S, 3] cos, T[B, S, 3] sin", opset=23)
    assert outcome.counts["QkNormRope"] == 1
    outcome.same(*SIZES)


FIRST = {"cache": "T[B, S, 1, 6] cos, T[B, S, 1, 6] sin"}
SAME = {"cache": "T[6] cos, T[6] sin"}
OWN = {"cache": "T[1, 2, S, 6] cos, T[1, 2, S, 6] sin"}
OTHER = PLAIN.replace("Mul(k_1, cos)", "Mul(k_1, more)")
REFUSED = {
    "an inner result is needed": (PLAIN + "z = Neg(k_1)", "not only", {"outputs": "T q, T k, T z"}),
    "only q is normed": (packed((SWAP, NORM, TURN), (SWAP, TURN)), "RmsNorm of only one", {}),
    "only q turns": (packed((SWAP, TURN), (SWAP,)), "Rope of only one", {}),
    "v turns": (packed((SWAP, TURN), (SWAP, TURN), (SWAP, TURN)), "Rope of v", {}),
    "v is normed": (packed(*[(SWAP, NORM, TURN)] * 2, (SWAP, NORM)), "RmsNorm of v", {}),
    "v keeps its layout": (packed((SWAP, TURN), (SWAP, TURN), ()), "want (batch, heads", {}),
    "k turns first": (packed((SWAP, TURN), (TURN, SWAP)), "by other angles", SAME),
    "k turns by others": (OTHER, "by other angles", {"more": ", T[B, 1, S, 6] more"}),
    "heads turn by others": (packed(*[(SWAP, TURN)] * 2, counts=(2, 2, 4)), "k and v alike", OWN),
    "an angle a head": (
        packed(*[(SWAP, TURN)] * 2, counts=(2, 2, 2)),
        "an angle a head",
        {**OWN, "width": 36},
    ),
    "k and v differ": (packed((SWAP, TURN), (SWAP, TURN), counts=(4, 1, 3)), "k and v alike", {}),
    "epsilons differ": (NORMED.replace("0.01", "0.5", 1), "another epsilon", {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_same_is_left(case):
    text, reason, options = REFUSED[case]
    outcome = widened(text, **options)
    said = [miss.reason for miss in outcome.fused.misses if miss.kind == "QkNormRope"]
    assert any(reason in why for why in said), said
    assert "QkNormRope" not in outcome.ops
    outcome.same(*SIZES)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_as_many_positions_as_heads_are_left_where_they_are_not_swapped(name):
    """Their shape is the same in either order."""
    parts = {"q": (SWAP, TURN), "k": (SWAP, TURN), "v": (SWAP,)}
    parts[name] = parts[name][1:] or ("OUT = Identity(IN)\n",)
    text = packed(*parts.values(), counts=(4, 4, 4))
    made = model(text, "T[B, 4, 5] x, T[4, 6] cos, T[4, 6] sin", "T q, T k, T v", {"w": (5, 72)})
    outcome = fuse_model(made, library={"QkNormRope"})
    assert "QkNormRope" not in outcome.counts
    outcome.same({"B": 2})


def test_two_layers_of_which_one_is_normed():
    """One op has one definition in a model, so the second keeps its parts."""
    second = NORMED
    for name in ("raw", "packed", "q_", "k_", "v_", "q0", "q1", "q2", "k0", "k1", "k2"):
        second = second.replace(name, f"n{name}")
    second = second.replace("nq_gamma", "q_gamma").replace("nk_gamma", "k_gamma")
    for name in "qkv":
        second = second.replace(f"\n{name} =", f"\nn{name} =").replace(
            f"    {name} =", f"    n{name} ="
        )
    outcome = widened(PLAIN + second, outputs="T q, T k, T v, T nq, T nk, T nv")
    assert outcome.counts["QkNormRope"] == 1
    outcome.refused_at("nq_flat", "QkNormRope stands for norm=0 in this model already")
    outcome.same(*SIZES)


def proof(monkeypatch, right="", wrong=""):
    shapes = {"w": (5, 48), "q_gamma": (6,), "k_gamma": (6,)}
    made = model(NORMED, f"T[B, S, 5] x, {CACHE}", "T q, T k, T v", shapes)
    return prove_widening(monkeypatch, "QkNormRope", made, right, wrong)


def test_it_is_proven(monkeypatch):
    found = proof(monkeypatch)
    assert (found.matches, found.failed, found.whole) == (1, (), None)
    assert found.max_rel_err < 1e-5


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Cast<to: int = 1>(q_gamma)", "Cast<to: int = 1>(k_gamma)"),
        ("Neg(q_turned_high)", "Identity(q_turned_high)"),
        ("v = CastLike(v_heads, qkv)", "v = CastLike(k_heads, qkv)"),
    ],
)
def test_a_wrong_definition_is_refuted(monkeypatch, right, wrong):
    found = proof(monkeypatch, right, wrong)
    assert [failure.kind for failure in found.failed] == ["QkNormRope"]
