"""FlashAttention whose mask the exporter wrote down as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusions.test_attention import HEAD, TAIL, attention
from tests.small import fuse_model, model

TEXT = HEAD + "logits = Add(scores, mask)\n" + TAIL
SQUARE = "T[2, 4, 5, D] q, T[2, 4, 5, D] k, T[2, 4, 5, D] v"
ONE = "T[2, 4, 1, D] q, T[2, 4, 5, D] k, T[2, 4, 5, D] v"
OPERATOR = "y = Attention(q, k, v, mask)"


def triangle(size: int = 5, fill: float = -np.inf, offset: int = 0) -> np.ndarray:
    hidden = np.triu(np.ones((size, size), bool), 1 + offset)
    return np.where(hidden, np.float32(fill), np.float32(0))[None, None]


@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min, -1e9])
@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 1, 5, 5)])
def test_a_triangle_makes_attention_causal(fill, shape):
    outcome = attention(TEXT, qkv=SQUARE, mask=triangle(fill=fill).reshape(shape))
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "causal") == 1
    assert len(outcome.node("FlashAttention").input) == 3
    outcome.same({})


@pytest.mark.parametrize("qkv", [SQUARE, ONE])
def test_a_mask_of_zeros_is_none(qkv):
    keys = np.zeros((1, 1, 1, 5), np.float32)
    outcome = attention(TEXT, qkv=qkv, mask=keys)
    assert outcome.attribute("FlashAttention", "causal") == 0
    assert len(outcome.node("FlashAttention").input) == 3
    outcome.same({})


SPREAD = """
    whole = Expand(keep, [2, 1, 5, 5])
    mask = Where(whole, {zero}, {fill})
"""


@pytest.mark.parametrize(("name", "causal"), [("all", 0), ("triangle", 1)])
def test_a_mask_that_is_spread_from_constants(name, causal):
    """torch writes BERT's mask, which hides nothing, as a choice by an expanded constant."""
    keep = triangle() == 0 if name == "triangle" else np.ones((1, 1, 5, 1), bool)
    text = SPREAD.format(zero="0.0", fill="-inf") + TEXT
    outcome = attention(text, qkv=SQUARE, keep=keep)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "causal") == causal
    outcome.same({})


def test_a_triangle_that_is_compared_from_positions():
    """So torch leaves one that is too large for it to fold."""
    size = 300
    text = """
        seen = LessOrEqual(columns, rows)
        same = Equal(zeros, zeros)
        keep = And(seen, same)
        mask = Where(keep, 0.0, -inf)
    """
    at = np.arange(size)
    positions = {"columns": at[None, None, None], "rows": at[None, None, :, None]}
    square = SQUARE.replace("5, D", f"{size}, D")
    outcome = attention(text + TEXT, qkv=square, zeros=np.zeros((1, 1, size, 1)), **positions)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "causal") == 1
    outcome.same({})


@pytest.mark.parametrize(("zero", "fill"), [("-inf", "0.0"), ("0.5", "-inf")])
def test_a_choice_of_other_values_stays_a_mask(zero, fill):
    text = SPREAD.format(zero=zero, fill=fill) + TEXT
    keep = triangle() == 0
    keep[..., 1:] &= zero != "-inf"  # some key is left to every query
    outcome = attention(text, qkv=SQUARE, keep=keep)
    assert outcome.attribute("FlashAttention", "causal") == 0
    assert len(outcome.node("FlashAttention").input) == 4
    outcome.same({})


def nearly(name: str) -> np.ndarray:
    mask = triangle()
    if name == "a key too many is seen":
        mask[0, 0, 1, 2] = 0
    elif name == "a key too few is seen":
        mask[0, 0, 3, 1] = -np.inf
    elif name == "scores reach the fill":
        mask = triangle(fill=-100)
    elif name == "a bias":
        mask[0, 0, 3, 1] = 0.5
    elif name == "it starts a column later":
        mask = triangle(offset=1)
    else:
        mask = np.repeat(mask, 2, 0)
        mask[1, 0, 2, 0] = -np.inf
    return mask


@pytest.mark.parametrize(
    "name",
    [
        "a key too many is seen",
        "a key too few is seen",
        "scores reach the fill",
        "a bias",
        "it starts a column later",
        "one of the batch differs",
    ],
)
def test_what_is_nearly_a_triangle_stays_a_mask(name):
    outcome = attention(TEXT, qkv=SQUARE, mask=nearly(name))
    assert outcome.attribute("FlashAttention", "causal") == 0
    assert len(outcome.node("FlashAttention").input) == 4
    outcome.same({})


def test_a_triangle_of_fewer_queries_stays_a_mask():
    """Which corner it starts in differs between runtimes, so only squares are taken."""
    two = SQUARE.replace("5, D] q", "2, D] q")
    outcome = attention(TEXT, qkv=two, mask=triangle()[:, :, 3:])
    assert outcome.attribute("FlashAttention", "causal") == 0
    outcome.same({})


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_the_standard_operator(dtype):
    mask = triangle()
    mask = mask == 0 if dtype is bool else mask
    outcome = fuse_model(
        model(OPERATOR, SQUARE.replace("D]", "6]"), "T y", {"mask": mask}, opset=23)
    )
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "causal") == 1
    outcome.same({})
