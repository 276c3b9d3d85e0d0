"""Probabilities that are set to 0 where the scores were masked, as speech models have them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

QKV = "T[B, 4, Q, 6] q, T[B, 4, K, 6] k, T[B, 4, K, 6] v, bool[B, 1, 1, K] m"
CORE = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    product = MatMul(q, kt)
    scores = Mul(product, 0.4)
    {}
    y = MatMul(zeroed, v)
"""
DROPPED = """
    masked = Where(m, {fill}, scores)
    p = Softmax<axis=-1>(masked)
    zeroed = Where(m, 0.0, p)
"""
KEPT = """
    masked = Where(m, scores, {fill})
    p = Softmax<axis=-1>(masked)
    zeroed = Where(m, p, 0.0)
"""
FILLS = {"float": ("-inf", "-3.4028235e38"), "float16": ("-inf", "-65504.0")}
SIZES = {"B": 3, "Q": 5, "K": 7}


def fused(text, inputs=QKV, dtype="float", **options):
    return fuse_model(model(CORE.format(text), inputs, dtype=dtype), **options)


def mask(hidden):
    """A batch of which nothing, something, and everything is hidden; what is kept, or not."""
    rows = np.array([[False] * 7, [False] * 4 + [True] * 3, [True] * 7])
    return (rows if hidden else ~rows)[:, None, None]


@pytest.mark.parametrize("form", [DROPPED, KEPT])
@pytest.mark.parametrize("dtype", FILLS)
def test_it_fuses(form, dtype):
    for fill in FILLS[dtype]:
        outcome = fused(form.format(fill=fill), dtype=dtype)
        assert outcome.counts == {"FlashAttention": 1}
        assert outcome.attribute("FlashAttention", "nan_guard") == 2
        outcome.same(SIZES, m=mask(form is DROPPED))


@pytest.mark.parametrize("form", [DROPPED, KEPT])
def test_a_nan_stays(form):
    """It is not 0, as in a row that sees no key."""
    outcome = fused(form.format(fill="-inf"))
    q = np.ones((3, 4, 5, 6), np.float32)
    q[:, :, 2, 1] = np.nan
    partly = mask(form is DROPPED)[[0, 1, 1]]
    outcome.same(SIZES, m=partly, q=q)


BIASED = "biased = Add(scores, bias)" + DROPPED.replace("fill}, scores", "fill}, biased")


def biased(lowest):
    weights = {"bias": np.linspace(lowest, 3, 35, dtype=np.float32).reshape(1, 1, 5, 7)}
    text = CORE.format(BIASED.format(fill="-3.0e38"))
    return fuse_model(model(text, QKV.replace("Q", "5").replace("K", "7"), weights=weights))


def test_a_bias_before_the_mask():
    outcome = biased(-3.0)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 3}, m=mask(True))


def test_a_bias_that_may_hide_keys_too_is_refused():
    """A row may see none but those that it hides, which have to share with the filled ones."""
    biased(-1e9).refused("FlashAttention", "biased", "bias, which may hide keys too")
    unknown = fused(BIASED.format(fill="-3.0e38"), QKV + ", T[1, 4, Q, K] bias")
    unknown.refused("FlashAttention", "biased", "bias, which may hide keys too")


def test_two_guards_share_one_definition():
    first = CORE.format(DROPPED.format(fill="-inf")).replace("y =", "between =")
    second = """
        kt2 = Transpose<perm=[0, 1, 3, 2]>(k)
        product2 = MatMul(between, kt2)
        masked2 = Where(m, -inf, product2)
        p2 = Softmax<axis=-1>(masked2)
        undefined = IsNaN(p2)
        guarded = Where(undefined, 0.0, p2)
        y = MatMul(guarded, v)
    """
    outcome = fuse_model(model(first + second, QKV))
    assert outcome.counts == {"FlashAttention": 2}
    outcome.same(SIZES, m=mask(True))


OTHERS = {
    "another mask": DROPPED.replace("zeroed = Where(m", "zeroed = Where(other"),
    "the other way round": DROPPED.replace("Where(m, 0.0, p)", "Where(m, p, 0.0)"),
    "no fill before": DROPPED.replace("masked = Where(m, {fill}, scores)", "masked = Neg(scores)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_zeros_elsewhere_are_refused(case):
    outcome = fused(OTHERS[case].format(fill="-inf"), QKV + ", bool[B, 1, 1, K] other")
    assert not outcome.fused.counts["FlashAttention"]


def test_zeros_elsewhere_are_told():
    text = OTHERS["another mask"].format(fill="-inf")
    outcome = fused(text, QKV + ", bool[B, 1, 1, K] other")
    outcome.refused("FlashAttention", "zeroed", "sets other probabilities to 0 than those")


def test_a_fill_that_scores_may_reach_is_refused():
    outcome = fused(DROPPED.format(fill="-10000.0"))
    outcome.refused("FlashAttention", "masked", "which scores may reach")


def test_a_mask_of_lengths_goes_too():
    text = """
        size = Shape<start=2, end=3>(k)
        count = Squeeze(size)
        keys = Range(zero, count, one)
        ends = Unsqueeze(n, [1])
        long = GreaterOrEqual(keys, ends)
        m = Unsqueeze(long, [1, 2])
    """ + DROPPED.format(fill="-3.0e38")
    inputs = QKV.replace("bool[B, 1, 1, K] m", "int64[B] n")
    weights = {"zero": np.array(0), "one": np.array(1)}
    made = model(CORE.format(text), inputs, weights=weights)
    outcome = fuse_model(made, library={"FlashAttention"})
    assert outcome.ops == ["FlashAttention"]
    outcome.same(SIZES, n=np.array([0, 7, 3]))
