"""Exponentials of what is never positive: a decay, and not an overflow of inputs to come."""

from __future__ import annotations

import numpy as np
import pytest

from tests.precision.converted import ROUNDING, convert, feeds
from tests.small import model

RATES = np.linspace(0.1, 2, 16, dtype=np.float32)
NEVER_POSITIVE = {
    "a gated decay": "s = Sigmoid(h)\nr = Neg(rates)\nd = Mul(s, r)",
    "of a state space model": "s = Softplus(h)\nr = Neg(rates)\nd = Mul(r, s)",
    "a distance": "s = Mul(h, h)\nd = Neg(s)",
    "below its maximum": "m = ReduceMax<keepdims=1>(h, [-1])\nd = Sub(h, m)",
    "moved": "s = Abs(h)\nn = Neg(s)\nt = Unsqueeze(n, [0])\nd = Squeeze(t, [0])",
    "a quotient": "s = Abs(h)\nr = Neg(rates)\nd = Div(s, r)",
    "a choice": "s = Abs(h)\nn = Neg(s)\nd = Where(keep, n, -1.0)",
}
OTHERS = {
    "a product of two of them": "s = Abs(h)\nn = Neg(s)\nd = Mul(n, n)",
    "two signs": "d = Mul(h, rates)",
    "a difference": "s = Relu(h)\nd = Sub(h, s)",
    "below a maximum of another row": "m = ReduceMax<keepdims=0>(h, [-1])\nd = Sub(h, m)",
    "what is written over": "s = Abs(h)\nn = Neg(s)\n"
    'd = ScatterElements<axis=1, reduction="mul">(n, places, n)',
    "a mask": "s = Abs(h)\nn = Neg(s)\nd = Where(keep, n, 1.0)",
    "a sum with a weight of the other sign": "s = Abs(h)\nn = Neg(s)\nd = Add(n, rates)",
}


def converted(text, precision, tmp_path):
    weights = {"w": (16, 16), "v": (16, 4), "rates": RATES, "keep": RATES > 1}
    weights |= {"places": np.arange(16).reshape(1, 16).repeat(16, 0)}
    weights = {name: value for name, value in weights.items() if name in text or name in "wv"}
    text = f"h = MatMul(x, w)\n{text}\ne = Exp(d)\ny = MatMul(e, v)"
    return convert(model(text, "T[16, 16] x", weights=weights), tmp_path, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NEVER_POSITIVE)
def test_an_exponential_of_what_is_never_positive_needs_no_cast(name, precision, tmp_path):
    result = converted(NEVER_POSITIVE[name], precision, tmp_path)
    assert result.kept == {}
    assert len(result.casts()) == 2
    result.same(feeds(result.before, seed=5), 2 * ROUNDING[precision])


@pytest.mark.parametrize("name", OTHERS)
def test_an_exponential_that_may_grow_is_kept(name, tmp_path):
    assert "e" in converted(OTHERS[name], "fp16", tmp_path).kept


@pytest.mark.parametrize(
    "undone",
    ["l = Log(e)", "p = Add(e, 1.0e-12)\nl = Log(p)", "l = Reciprocal(e)", "l = Div(x, e)"],
)
@pytest.mark.parametrize("small", ["e = Softmax(h)", "s = Abs(h)\nn = Neg(s)\ne = Exp(n)"])
def test_what_a_tiny_value_is_made_large_again_from_is_kept(small, undone, tmp_path):
    """Where an input makes it 1e-9, the logarithm of its fp16 would be minus infinity."""
    text = f"h = MatMul(x, w)\n{small}\n{undone}\na = MatMul(e, v)\nb = MatMul(l, v)\ny = Add(a, b)"
    small_model = model(text, "T[16, 16] x", weights={"w": (16, 16), "v": (16, 4)})
    result = convert(small_model, tmp_path, "fp16")
    assert "e" in result.kept


def test_experts_are_chosen_in_fp32(tmp_path):
    """Two whose probabilities differ in fp32 alone would be one value in fp16."""
    text = "h = MatMul(x, w)\ne = Softmax(h)\nt, i = TopK(e, k)\ny = MatMul(t, v)"
    weights = {"w": (16, 16), "k": np.array([3]), "v": (3, 4)}
    result = convert(model(text, "T[16, 16] x", weights=weights), tmp_path, "fp16")
    assert "e" in result.kept


def test_a_logarithm_of_a_softmax_stays_finite(tmp_path):
    text = "h = MatMul(x, w)\ne = Softmax(h)\nl = Log(e)\na = MatMul(e, v)\nb = MatMul(l, v)"
    small_model = model(
        f"{text}\ny = Add(a, b)", "T[16, 16] x", weights={"w": (16, 16), "v": (16, 4)}
    )
    result = convert(small_model, tmp_path, "fp16")
    larger = {name: 10 * array for name, array in feeds(result.before, seed=5).items()}
    result.same(larger)


def test_a_softplus_of_large_values_is_kept(tmp_path):
    """Not every runtime leaves out the exponential in it where that overflows."""
    for scale, kept in (("1.0", False), ("9.0", True)):
        text = f"h = MatMul(x, w)\na = Mul(h, {scale})\ns = Softplus(a)\ny = MatMul(s, v)"
        weights = {"w": (16, 16), "v": (16, 4)}
        result = convert(model(text, "T[3, 16] x", weights=weights), tmp_path, prove=True)
        assert ("s" in result.kept) == kept
        result.same(feeds(result.before, seed=5), ROUNDING["fp16"])
