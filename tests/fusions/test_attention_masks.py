"""FlashAttention with masks on filled scores, clamped scores, and a scale of each head."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusions.test_attention import HEAD, LOWEST, SIZES, TAIL, attention, fully_masked
from tests.small import compare, draw, session

FILLED = HEAD + "filled = Where(keep, scores, {})\nlogits = Add(filled, mask)\n" + TAIL
CLAMPED = HEAD + "masked = Add(scores, mask)\nlogits = {}\n" + TAIL
INPUTS = "bool[B, 1, Q, K] keep, T[B, 1, 1, K] mask"


def one_key_masked(dtype: type = np.float32) -> np.ndarray:
    mask = np.zeros((2, 1, 1, 5), dtype)
    mask[1, ..., -1] = np.finfo(dtype).min
    return mask


@pytest.mark.parametrize("fill", [LOWEST["float"], "-inf"])
def test_a_mask_that_is_added_to_filled_scores(fill):
    """GPT-Neo fills by position and adds the padding."""
    outcome = attention(FILLED.format(fill), INPUTS)
    assert outcome.counts == {"FlashAttention": 1}
    keep = fully_masked(2, 5, 5)
    if fill == "-inf":
        keep[0, 0, -1, 0] = True  # a row without any key is NaN there
    outcome.same({"B": 2, "Q": 5, "K": 5}, keep=keep, mask=one_key_masked())


def test_what_is_below_the_steps_of_fp16_is_not_stretched():
    """Where fp16 is computed in fp32, as onnxruntime does, it would choose one hidden key."""
    outcome = attention(FILLED.format("-65504.0"), INPUTS, dtype="float16")
    feeds = draw(outcome.before, {"B": 2, "Q": 5, "K": 5}, 0) | {
        "keep": np.zeros((2, 1, 5, 5), bool)
    }
    (have,) = session(outcome.after).run(None, feeds)
    want = feeds["v"].astype(np.float32).mean(-2, keepdims=True)
    compare("y", np.broadcast_to(want, have.shape).astype(np.float16), have)


def test_a_fill_that_the_mask_may_lower_is_refused():
    """In a row that is filled everywhere, the mask decides in the original."""
    outcome = attention(FILLED.format("-1.0e9"), INPUTS)
    outcome.refused("FlashAttention", "filled", "beside another mask, which may be lower")


@pytest.mark.parametrize("clamp", ["Max(masked, {})", "Max({}, masked)", "Clip(masked, {})"])
def test_scores_that_are_clamped_to_the_lowest_number(clamp):
    """XGLM and OPT: a row of -inf alone weighs all keys alike."""
    outcome = attention(CLAMPED.format(clamp.format(LOWEST["float"])), "T[B, 1, Q, K] mask")
    assert outcome.counts == {"FlashAttention": 1}
    mask = np.where(fully_masked(2, 5, 5), 0, -np.inf).astype(np.float32)
    outcome.same({"B": 2, "Q": 5, "K": 5}, mask=mask)
    outcome.same(*SIZES)


def test_scores_in_fp16_that_are_clamped_to_its_lowest_number():
    """XGLM: there the lowest number takes up the scores that are added to it."""
    outcome = attention(
        CLAMPED.format("Max(masked, -65504.0)"), "T[B, 1, Q, K] mask", dtype="float16"
    )
    assert outcome.counts == {"FlashAttention": 1}
    mask = np.where(fully_masked(2, 5, 5), 0, -np.inf).astype(np.float16)
    outcome.same({"B": 2, "Q": 5, "K": 5}, mask=mask)
    outcome.same(*SIZES)
    sizes, lowest = {"B": 2, "Q": 5, "K": 5}, np.full((2, 1, 5, 5), -65504, np.float16)
    feeds = draw(outcome.before, sizes, 0) | {"mask": lowest}
    (have,) = session(outcome.after).run(None, feeds)
    want = feeds["v"].astype(np.float32).mean(-2, keepdims=True)
    compare("y", np.broadcast_to(want, have.shape).astype(np.float16), have)


SLOPED = f"""
{HEAD}
last = Constant<value_ints = [3]>()
whole = Constant<value_ints = [8]>()
sizes = Shape(scores)
keys = Gather(sizes, last)
start = Sub(whole, keys)
axis = Constant<value_ints = [2]>()
part = Slice(slopes, start, whole, axis)
biased = Add(scores, part)
logits = Where(keep, biased, -65504.0)
{TAIL}"""


def table(lowest: float, dtype: str = "float32") -> np.ndarray:
    return np.linspace(lowest, 0, 4 * 8).reshape(4, 1, 8).astype(dtype)


@pytest.mark.parametrize("dtype", LOWEST)
def test_a_fill_beside_a_part_of_a_constant_that_hides_no_key(dtype):
    """MPT adds a part of a table to scores in fp32, and fills with the lowest number of fp16."""
    slopes = table(-70, "float32" if dtype == "float" else dtype)
    outcome = attention(SLOPED, "bool[B, 1, Q, K] keep", dtype=dtype, slopes=slopes)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "Q": 5, "K": 5}, keep=fully_masked(2, 5, 5))
    outcome.same(*SIZES)


def test_a_fill_beside_a_constant_that_may_hide_keys_is_refused():
    outcome = attention(SLOPED, "bool[B, 1, Q, K] keep", slopes=table(-4e4))
    outcome.refused("FlashAttention", "logits", "beside another mask, which may be lower")


@pytest.mark.parametrize(
    ("clamp", "dtype"),
    [
        ("Max(masked, 0.0)", "float"),
        ("Clip(masked, -3.4028235e38, 0.0)", "float"),
        ("Max(masked, -65472.0)", "float16"),
    ],
)
def test_scores_that_are_clamped_otherwise_are_refused(clamp, dtype):
    outcome = attention(CLAMPED.format(clamp), "T[B, 1, Q, K] mask", dtype=dtype)
    outcome.refused("FlashAttention", "logits", "clamps the scores")
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["4, 1, 1", "1, 4, 1, 1", "B, 4, 1, 1"])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_scale_of_each_head(shape, dtype):
    """Swin 2 learns it, and exporters leave its exponential in the graph."""
    text = HEAD.replace("0.25", "each") + TAIL.replace("logits", "scores")
    outcome = attention(text, f"T[{shape}] each", dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


def test_a_constant_scale_of_each_head():
    text = HEAD.replace("0.25", "each") + TAIL.replace("logits", "scores")
    outcome = attention(text, each=(4, 1, 1))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


def test_scores_in_fp32_of_fp16_queries_and_keys():
    """GPT-J widens q and k, and multiplies the weights with v in fp16."""
    text = """
        wide_q = Cast<to=1>(q)
        wide_k = Cast<to=1>(k)
        kt = Transpose<perm=[0, 1, 3, 2]>(wide_k)
        raw = MatMul(wide_q, kt)
        four = Constant<value_float=4.0>()
        scores = Div(raw, four)
        logits = Add(scores, mask)
        weights = Softmax<axis=-1>(logits)
        narrow = Cast<to=10>(weights)
        y = MatMul(narrow, v)
    """
    outcome = attention(text, "float[B, 1, Q, K] mask", dtype="float16")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)
