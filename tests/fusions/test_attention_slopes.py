"""A bias by distance becomes FlashAttention's slopes, where a plugin library has the op."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusions.test_position_masks import CORE, NUMBERS, QKV, STEPS
from tests.proving import prove_widening
from tests.small import fuse_model, model

FALLING = np.array([0.5, 0.25, 0.125, 0.0625], np.float32).reshape(4, 1, 1)
WEIGHTS = {**NUMBERS, "slopes": FALLING, "minus": -FALLING, "few": (2, 1, 1)}
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 1, "S": 9})
PAD = ", bool[B, 1, 1, S] pad"
CAUSAL = "logits = Where(causal, biased, -inf)"
FAR = """
    away = Abs(distance)
    far = Cast<to=1>(away)
    bias = Mul({})
    biased = Add(scores, bias)
"""
BY_KEY = """
    far = Cast<to=1>(steps)
    bias = Mul(slopes, far)
    biased = Add(scores, bias)
"""


def widened(logits, *, more="", steps=STEPS, qkv=QKV, weights=WEIGHTS, **options):
    made = model(steps + CORE.format(logits), qkv + more, weights=weights, **options)
    outcome = fuse_model(made, library={"FlashAttention"})
    assert outcome.counts == {"FlashAttention": 1}
    return outcome


def slopes_of(outcome) -> np.ndarray | None:
    """The node's last input, where it is its slopes."""
    (node,) = [node for node in outcome.fused.graph.nodes if node.op == "FlashAttention"]
    if not node.attrs.get("slopes"):
        return None
    return outcome.fused.facts.value(node.inputs[-1])


SPELT = {
    "both sides": FAR.format("far, minus") + "logits = Identity(biased)",
    "heads first": FAR.format("minus, far") + "logits = Identity(biased)",
    "both sides, causal": FAR.format("far, minus") + CAUSAL,
    "negative": """
        away = Abs(distance)
        far = Cast<to=1>(away)
        back = Neg(far)
        less = Mul(back, slopes)
        bias = Unsqueeze(less, [0])
        logits = Add(scores, bias)
    """,
    "in floats": """
        row32 = Cast<to=1>(row)
        column32 = Cast<to=1>(column)
        apart = Sub(row32, column32)
        far = Abs(apart)
        bias = Mul(far, minus)
        logits = Add(scores, bias)
    """,
    "behind each query": """
        far = Cast<to=1>(distance)
        bias = Mul(far, slopes)
        biased = Add(scores, bias)
    """
    + CAUSAL,
    "by key": BY_KEY + CAUSAL,
}


@pytest.mark.parametrize("case", SPELT)
def test_it_becomes_slopes(case):
    outcome = widened(SPELT[case])
    assert slopes_of(outcome).tolist() == FALLING.ravel().tolist()
    assert len(outcome.node("FlashAttention").input) == 4  # and no mask
    outcome.same(*SIZES)


def test_without_a_library_the_bias_stays():
    made = model(STEPS + CORE.format(SPELT["both sides"]), QKV, weights=WEIGHTS)
    for library in (None, {"Rope"}):
        assert slopes_of(fuse_model(made, library=library)) is None


def test_padding_beside_it_stays_a_mask():
    text = FAR.format("far, minus") + "hidden = Where(pad, 0.0, -inf)\nlogits = Add(biased, hidden)"
    outcome = widened(text, more=PAD)
    assert slopes_of(outcome) is not None
    assert len(outcome.node("FlashAttention").input) == 5
    pad = np.arange(5) < np.array([5, 3])[:, None]
    outcome.same({"B": 2, "S": 5}, pad=pad[:, None, None])


DISTANCE = np.arange(6) - np.arange(6)[:, None]
CONSTANTS = {
    "both sides": (-FALLING * abs(DISTANCE), "logits = Add(scores, table)", True),
    "by key": (FALLING * np.arange(-5, 1), "biased = Add(scores, table)\n" + CAUSAL, True),
    "by key, seen from all": (FALLING * np.arange(6), "logits = Add(scores, table)", False),
    "squares": (-FALLING * DISTANCE**2, "logits = Add(scores, table)", False),
    "one off": (
        -FALLING * abs(DISTANCE) - 0.5 * (DISTANCE == 3), "logits = Add(scores, table)", False,
    ),
    "beside a head of a large number": (
        np.where(FALLING == 0.5, -1e9, FALLING * np.arange(6) ** 2),
        "biased = Add(scores, table)\n" + CAUSAL, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONSTANTS)
def test_a_bias_that_is_written_down(case):
    table, logits, understood = CONSTANTS[case]
    weights = {**WEIGHTS, "table": table.astype(np.float32)}
    outcome = widened(logits, qkv=QKV.replace("[B, 4, S, 8]", "[B, 4, 6, 8]"), weights=weights)
    assert (slopes_of(outcome) is not None) == understood
    outcome.same({"B": 2})


@pytest.mark.parametrize(
    "logits",
    [
        "far = Cast<to=1>(distance)\nbias = Mul(far, slopes)\nlogits = Add(scores, bias)",
        "twice = Add(row, row)\napart = Sub(twice, column)\naway = Abs(apart)\n"
        "far = Cast<to=1>(away)\nbias = Mul(far, minus)\nlogits = Add(scores, bias)",
        "later = Sub(distance, single)\naway = Abs(later)\n"
        "far = Cast<to=1>(away)\nbias = Mul(far, minus)\nlogits = Add(scores, bias)",
        "near = Less(distance, two)\nfar = Cast<to=1>(near)\n"
        "bias = Mul(far, minus)\nlogits = Add(scores, bias)",
    ],
    ids=["of both signs", "another distance", "one off", "no distance"],
)
def test_what_no_slope_says_is_left(logits):
    outcome = widened(logits)
    assert slopes_of(outcome) is None
    outcome.same(*SIZES)


@pytest.mark.parametrize(("heads", "part"), [(4, "[2], [3]"), (8, "[4], [8]")])
def test_slopes_of_some_of_the_heads_are_left(heads, part):
    text = f"""
        away = Abs(distance)
        far = Cast<to=1>(away)
        whole_bias = Mul(far, more)
        bias = Slice(whole_bias, {part}, [0])
        logits = Add(scores, bias)
    """
    more = -np.arange(1, heads + 1, dtype=np.float32).reshape(heads, 1, 1)
    outcome = widened(text, weights={**WEIGHTS, "more": more})
    assert slopes_of(outcome) is None
    outcome.same(*SIZES)


def test_queries_behind_a_cache():
    steps = """
        whole1 = Shape<start=2, end=3>(k)
        length1 = Shape<start=2, end=3>(q)
        whole = Squeeze(whole1)
        length = Squeeze(length1)
        past = Sub(whole, length)
        mine = Range(past, whole, single)
        keys = Range(nought, whole, single)
        row = Unsqueeze(mine, [1])
        column = Unsqueeze(keys, [0])
        distance = Sub(column, row)
    """
    qkv = "T[B, 4, S, 8] q, T[B, 4, K, 8] k, T[B, 4, K, 8] v"
    outcome = widened(SPELT["both sides"], steps=steps, qkv=qkv)
    assert slopes_of(outcome) is not None
    outcome.same({"B": 2, "S": 3, "K": 7}, {"B": 1, "S": 1, "K": 6})


def test_attentions_without_slopes_get_neutral_ones():
    """One op has one definition in a model."""
    second = """
        kt2 = Transpose<perm=[0, 1, 3, 2]>(v)
        raw2 = MatMul(y, kt2)
        scaled2 = Mul(raw2, 0.5)
        hidden = Where(pad, 0.0, -inf)
        masked2 = Add(scaled2, hidden)
        weights2 = Softmax<axis=-1>(masked2)
        z = MatMul(weights2, v)
    """
    text = STEPS + CORE.format(SPELT["both sides"]) + second
    made = model(text, QKV + PAD, "T z", weights=WEIGHTS)
    outcome = fuse_model(made, library={"FlashAttention"})
    assert outcome.counts == {"FlashAttention": 2}
    pad = np.arange(5) < np.array([5, 3])[:, None]
    outcome.same({"B": 2, "S": 5}, pad=pad[:, None, None])


@pytest.mark.parametrize("case", ["both sides", "by key"])
def test_it_is_proven(monkeypatch, case):
    made = model(STEPS + CORE.format(SPELT[case]), QKV, weights=WEIGHTS)
    found = prove_widening(monkeypatch, "FlashAttention", made, "", "")
    assert found.matches > 0
    assert (found.failed, found.whole) == ((), None)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("Abs(away)", "Identity(away)"), ("Sub(level, cost)", "Add(level, cost)")],
)
def test_a_wrong_definition_is_refuted(monkeypatch, right, wrong):
    made = model(STEPS + CORE.format(SPELT["both sides"]), QKV, weights=WEIGHTS)
    found = prove_widening(monkeypatch, "FlashAttention", made, right, wrong)
    assert [failure.kind for failure in found.failed] == ["FlashAttention"]
