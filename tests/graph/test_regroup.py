"""What stands between the parts of a pattern moves out of it, and the numbers stay."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

SUM = """
    r = Transpose<perm=[0, 2, 1]>(x)
    sum = Add({sum})
    turned = Transpose<perm=[0, 2, 1]>(sum)
    y = LayerNormalization<axis=-1>(turned, gamma, beta)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})


def turned(text: str, outputs: str = "T y"):
    inputs = "T[B, S, 6] x, T[B, 6, S] c"
    return fuse_model(model(text, inputs, outputs, {"gamma": (6,), "beta": (6,)}))


@pytest.mark.parametrize("order", ["c, r", "r, c"])
def test_a_sum_that_is_turned_before_its_norm(order):
    """SqueezeBERT adds with the channels in front."""
    outcome = turned(SUM.format(sum=order))
    assert outcome.counts == {"AddLayerNorm": 1}
    assert sorted(outcome.ops) == ["AddLayerNorm", "Transpose"]
    outcome.same(*SIZES)


def test_a_sum_that_is_read_as_it_lies_stays():
    outcome = turned(SUM.format(sum="c, r") + "z = Neg(sum)", "T y, T z")
    assert outcome.counts == {"LayerNormalization": 1}
    outcome.same(*SIZES)


WINDOWS = """
    q = Reshape(q5, [-1, 2, 4, 6])
    k = Reshape(k5, [-1, 2, 4, 6])
    v = Reshape(v5, [-1, 2, 4, 6])
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    scores = MatMul(q, kt)
    apart = Reshape(scores, [-1, 3, 2, 4, 4])
    {masked}
    whole = Reshape(masked, [-1, 2, 4, 4])
    weights = Softmax<axis=-1>(whole)
    y = MatMul(weights, v)
"""
QKV = "T[I, 3, 2, 4, 6] q5, T[I, 3, 2, 4, 6] k5, T[I, 3, 2, 4, 6] v5"
ONCE = "masked = Add(apart, mask)"
TWICE = "some = Add(mask, apart)\nmasked = Add(some, mask)"


def windows(masked: str, mask: str):
    text = WINDOWS.format(masked=masked)
    return fuse_model(model(text, f"{QKV}, T[{mask}] mask"))


@pytest.mark.parametrize("masked", [ONCE, TWICE], ids=["once", "twice"])
@pytest.mark.parametrize("mask", ["1, 3, 1, 4, 4", "1, 3, 2, 1, 4"])
def test_a_mask_of_each_window(masked, mask):
    """Swin splits images from windows for its mask; Swin 2 adds it twice."""
    outcome = windows(masked, mask)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"I": 2}, {"I": 1})


def test_a_mask_of_each_image_stays_where_it_is():
    outcome = windows(ONCE, "I, 3, 1, 4, 4")
    assert not outcome.fused.counts["FlashAttention"]
    outcome.same({"I": 2}, {"I": 1})


RELATIVE = """
    kt = Transpose<perm=[0, 2, 1]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.5)
    apart = Reshape(scores, [0, 2, 3, 2, 3])
    by_row = Unsqueeze(rows, [4])
    by_column = Unsqueeze(columns, [3])
    some = Add({some})
    biased = Add({biased})
    whole = Reshape(biased, [0, 6, 6])
    weights = Softmax<axis=-1>(whole)
    y = MatMul(weights, v)
"""
POSITIONS = "T[N, 6, 8] q, T[N, 6, 8] k, T[N, 6, 8] v, T[N, 2, 3, 2] rows, T[N, 2, 3, 3] columns"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("some", ["apart, by_row", "by_row, apart"])
@pytest.mark.parametrize("biased", ["some, by_column", "by_column, some"])
def test_scores_that_are_split_for_a_bias_of_rows_and_one_of_columns(some, biased, dtype):
    """SAM and ViTDet."""
    outcome = fuse_model(model(RELATIVE.format(some=some, biased=biased), POSITIONS, dtype=dtype))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"N": 4}, {"N": 1})


def test_scores_that_are_split_otherwise_stay():
    """Here columns and rows change places."""
    text = RELATIVE.format(some="apart, by_row", biased="some, by_column")
    text = text.replace("whole =", "turned = Transpose<perm=[0, 2, 1, 3, 4]>(biased)\nwhole =")
    outcome = fuse_model(model(text.replace("(biased, [0", "(turned, [0"), POSITIONS))
    assert not outcome.counts.get("FlashAttention")
    outcome.same({"N": 4})


def test_split_scores_that_are_read_too_stay():
    text = RELATIVE.format(some="apart, by_row", biased="some, by_column") + "z = Neg(some)"
    outcome = fuse_model(model(text, POSITIONS, "T y, T z"))
    assert not outcome.counts.get("FlashAttention")
    outcome.same({"N": 4})
