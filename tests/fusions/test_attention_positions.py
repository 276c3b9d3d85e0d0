"""Masks by position become FlashAttention's causal and window, where a plugin library has it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.fusions.test_position_masks import ALIBI, CORE, NUMBERS, QKV, STEPS
from tests.proving import prove_widening
from tests.small import fuse_model, model

LOWEST = "-3.4028235e38"
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 1, "S": 9})
PAD = ", bool[B, 1, 1, S] pad"
NEAR = """
    first = Sub(row, two)
    near = Greater(column, first)
    seen = And(causal, near)
"""
BOTH = """
    back = Sub(row, column)
    below = LessOrEqual(back, two)
    above = Less(distance, three)
    seen = And(below, above)
"""
WEIGHTS = NUMBERS | {"three": np.array(3), "slopes": (4, 1, 1)}


def widened(logits, *, more="", core=CORE, steps=STEPS, qkv=QKV, **options):
    weights = {**WEIGHTS, **options.pop("weights", {})}
    made = model(steps + core.format(logits), qkv + more, weights=weights, **options)
    outcome = fuse_model(made, library={"FlashAttention"})
    assert outcome.counts == {"FlashAttention": 1}
    return outcome


def seen(outcome) -> tuple[int, object, object]:
    """The node's inputs, causal, and window."""
    node = outcome.node("FlashAttention")
    causal, window = (outcome.attribute("FlashAttention", name) for name in ("causal", "window"))
    return len(node.input), causal, window


SPELT = {
    "where": ("logits = Where(causal, scores, -inf)", (3, 1, 0)),
    "where not": ("no = Not(causal)\nlogits = Where(no, -inf, scores)", (3, 1, 0)),
    "finite": (f"logits = Where(causal, scores, {LOWEST})", (3, 1, 0)),
    "added": ("mask = Where(causal, 0.0, -inf)\nlogits = Add(scores, mask)", (3, 1, 0)),
    "after": (
        "later = Greater(column, row)\nlogits = Where(later, -inf, scores)",
        (3, 1, 0),
    ),
    "window": (NEAR + "logits = Where(seen, scores, -inf)", (3, 1, 2)),
    "both sides": (BOTH + "logits = Where(seen, scores, -inf)", (3, 0, 3)),
    "alibi": (ALIBI + "logits = Where(causal, biased, -inf)", (4, 1, 0)),
}


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("case", SPELT)
def test_positions(case, dtype):
    logits, want = SPELT[case]
    if dtype == "float16":
        logits = logits.replace(LOWEST, "-65504.0").replace("to=1", "to=10")
    outcome = widened(logits, dtype=dtype)
    assert seen(outcome) == want
    outcome.same(*SIZES)


def test_without_a_library_the_mask_stays():
    made = model(STEPS + CORE.format(SPELT["where"][0]), QKV, weights=WEIGHTS)
    for library in (None, {"Rope"}):
        assert seen(fuse_model(made, library=library)) == (4, 0, 0)


def test_padding_beside_it_stays_a_mask():
    text = "both = And(causal, pad)\nlogits = Where(both, scores, -inf)"
    outcome = widened(text, more=PAD)
    assert seen(outcome) == (4, 1, 0)
    pad = np.arange(5) < np.array([5, 3])[:, None]
    outcome.same({"B": 2, "S": 5}, pad=pad[:, None, None])


def test_a_comparison_that_always_holds_leaves_the_padding_as_it_was():
    """Transformers makes BERT's padding a mask of each query by comparing positions with 0."""
    text = (
        "always = GreaterOrEqual(row, nought)\nboth = And(always, pad)\n"
        f"logits = Where(both, scores, {LOWEST})"
    )
    outcome = widened(text, more=PAD)
    assert seen(outcome) == (4, 0, 0)
    (node,) = [node for node in outcome.fused.graph.nodes if node.op == "FlashAttention"]
    assert list(map(str, outcome.fused.facts.shape(node.inputs[3]))) == ["B", "1", "1", "S"]
    outcome.same(*SIZES)


def test_a_finite_fill_beside_padding_is_left():
    """A row that it masks as a whole weighs all keys alike, the later ones too."""
    text = f"both = And(causal, pad)\nlogits = Where(both, scores, {LOWEST})"
    outcome = widened(text, more=PAD)
    assert seen(outcome) == (4, 0, 0)
    reasons = [miss.reason for miss in outcome.fused.misses]
    assert any("beside another mask, which may be lower" in reason for reason in reasons)
    outcome.same({"B": 2, "S": 5})


@pytest.mark.parametrize(
    "logits",
    [
        "odd = Less(column, two)\nlogits = Where(odd, scores, -inf)",
        "twice = Add(row, row)\nodd = LessOrEqual(column, twice)\n"
        "logits = Where(odd, scores, -inf)",
        "back = GreaterOrEqual(column, row)\nlogits = Where(back, scores, -inf)",
        "next = Sub(column, single)\nodd = LessOrEqual(next, row)\n"
        "logits = Where(odd, scores, -inf)",
    ],
    ids=["by key", "another slope", "only later keys", "one more"],
)
def test_what_no_attribute_says_is_left(logits):
    outcome = widened(logits)
    assert seen(outcome) == (4, 0, 0)
    outcome.same(*SIZES)


def test_lines_of_other_axes_are_left():
    """Where a position counts heads, it is no query's."""
    steps = STEPS.replace("row = Unsqueeze(steps, [1])", "row = Unsqueeze(steps, [1, 2])")
    qkv = QKV.replace("[B, 4, S, 8]", "[B, 4, 4, 8]")
    outcome = widened(SPELT["where"][0], steps=steps, qkv=qkv)
    assert seen(outcome) == (4, 0, 0)
    outcome.same({"B": 2})


PAST = """
    whole1 = Shape<start=2, end=3>(k)
    length1 = Shape<start=2, end=3>(q)
    whole = Squeeze(whole1)
    length = Squeeze(length1)
    past = Sub(whole, length)
    steps = Range(past, whole, single)
    keys = Range(nought, whole, single)
    row = Unsqueeze(steps, [1])
    column = Unsqueeze(keys, [0])
    causal = LessOrEqual(column, row)
"""


def test_queries_behind_a_cache():
    joined = "k = Concat<axis=2>(old_k, new_k)\nv = Concat<axis=2>(old_v, new_v)\n"
    qkv = (
        "T[B, 4, S, 8] q, T[B, 4, P, 8] old_k, T[B, 4, S, 8] new_k, "
        "T[B, 4, P, 8] old_v, T[B, 4, S, 8] new_v"
    )
    outcome = widened(SPELT["where"][0], steps=joined + PAST, qkv=qkv)
    assert seen(outcome) == (3, 1, 0)
    outcome.same({"B": 2, "S": 3, "P": 4}, {"B": 1, "S": 1, "P": 6}, {"B": 1, "S": 4, "P": 1})


CONSTANTS = {
    "triangle": (np.tril(np.ones((6, 6), bool)), (3, 1, 0)),
    "band": (np.tril(np.triu(np.ones((1, 1, 6, 6), bool), -2)), (3, 1, 3)),
    "symmetric": (np.tril(np.triu(np.ones((6, 6), bool), -2), 2), (3, 0, 3)),
    "everything": (np.ones((1, 1, 6, 1), bool), (3, 0, 0)),
    "a hole": (np.tril(np.ones((6, 6), bool)) & (np.arange(36).reshape(6, 6) != 13), (4, 0, 0)),
    "upper": (np.triu(np.ones((6, 6), bool)), (4, 0, 0)),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constant_masks(case):
    mask, want = CONSTANTS[case]
    qkv = QKV.replace("[B, 4, S, 8]", "[B, 4, 6, 8]")
    chosen = widened(
        "logits = Where(table, scores, -inf)", steps="", qkv=qkv, weights={"table": mask}
    )
    table = np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32)
    added = widened("logits = Add(scores, table)", steps="", qkv=qkv, weights={"table": table})
    for outcome in (chosen, added):
        assert seen(outcome) == want
        outcome.same({"B": 2})


TRIANGLE = """
    length1 = Shape<start=2, end=3>(q)
    square = Concat<axis=0>(length1, length1)
    full = Expand({}, square)
    mask = Trilu<upper=1>(full, single)
    logits = Add(scores, mask)
"""


def test_a_triangle_of_fills():
    """CLIP's and older decoders' masks."""
    outcome = widened(TRIANGLE.format(LOWEST), steps="")
    assert seen(outcome) == (3, 1, 0)
    outcome.same(*SIZES)


PACKED = """
    batch1 = Shape<start=0, end=1>(q)
    length1 = Shape<start=2, end=3>(q)
    length = Squeeze(length1)
    steps = Range(nought, length, single)
    flat = Unsqueeze(steps, [0])
    both = Concat<axis=0>(batch1, length1)
    positions = Expand(flat, both)
    first = Slice(positions, [0], [1], [1], [1])
    before = Sub(first, single)
    padded = Concat<axis=1>(before, positions)
    left = Slice(padded, [0], [-1], [1], [1])
    right = Slice(padded, [1], [9223372036854775807], [1], [1])
    jump = Sub(right, left)
    same = Equal(jump, single)
    new = Not(same)
    ones = Cast<to=7>(new)
    document = CumSum(ones, single)
    column = Unsqueeze(document, [1, 2])
    row = Unsqueeze(document, [1, 3])
    together = Equal(column, row)
    mine = Unsqueeze(positions, [1, 3])
    theirs = Unsqueeze(positions, [1, 2])
    earlier = LessOrEqual(theirs, mine)
    seen = And(together, earlier)
"""


def test_documents_that_positions_show_to_be_one():
    """Transformers looks for packed documents even in positions that it counted itself."""
    qkv = QKV.replace("[B, 4, S, 8]", "[B, 4, 6, 8]")
    outcome = widened(f"logits = Where(seen, scores, {LOWEST})", steps=PACKED, qkv=qkv)
    assert seen(outcome) == (3, 1, 0)
    outcome.same({"B": 2})


def proof(monkeypatch, case: str, right: str = "", wrong: str = ""):
    made = model(STEPS + CORE.format(SPELT[case][0]), QKV, weights=WEIGHTS)
    return prove_widening(monkeypatch, "FlashAttention", made, right, wrong)


@pytest.mark.parametrize("case", ["where", "window", "both sides"])
def test_it_is_proven(monkeypatch, case):
    found = proof(monkeypatch, case)
    assert (found.matches, found.failed, found.whole) == (1, (), None)


@pytest.mark.parametrize(
    ("case", "right", "wrong"),
    [
        ("where", "LessOrEqual(columns, limit)", "Less(columns, limit)"),
        ("window", "Less(apart, window)", "LessOrEqual(apart, window)"),
        ("both sides", "Abs(distances)", "Identity(distances)"),
    ],
)
def test_a_wrong_definition_is_refuted(monkeypatch, case, right, wrong):
    found = proof(monkeypatch, case, right, wrong)
    assert [failure.kind for failure in found.failed] == ["FlashAttention"]


def test_an_operator_of_another_domain_says_nothing_by_its_name():
    text = "logits = Where(causal, scores, -inf)"
    made = model(STEPS + CORE.format(text), QKV, weights=NUMBERS)
    (compares,) = [node for node in made.graph.node if "causal" in node.output]
    compares.domain = "custom"
    made.opset_import.append(onnx.helper.make_opsetid("custom", 1))
    shapes = {"causal": (onnx.TensorProto.BOOL, ["S", "S"]), "logits": (1, ["B", 4, "S", "S"])}
    for name, (kind, shape) in shapes.items():
        made.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    outcome = fuse_model(made, library={"FlashAttention"})
    assert outcome.counts == {"FlashAttention": 1}
    assert seen(outcome) == (4, 0, 0)
