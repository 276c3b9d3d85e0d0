"""Constants of a pattern: their values, and what their shapes do to the result."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusions.spellings import GELU, GELU_TANH, spell
from tests.small import fuse_model, model

ATTENTION = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, scale)
    weights = Softmax<axis=-1>(scores)
    y = MatMul(weights, v)
"""
QKV = "T[B, 4, Q, 6] q, T[B, 4, K, 6] k, T[B, 4, K, 6] v"


@pytest.mark.parametrize("rank", [3, 5])
def test_a_scalar_that_widens_is_refused(rank):
    half = np.full((1,) * rank, 0.5, np.float32)
    text = "a = MatMul(x, w)\n" + spell(GELU["product then half"], "a", "y").replace("0.5", "half")
    outcome = fuse_model(model(text, "T[B, 5] x", weights={"w": (5, 4), "half": half}, opset=20))
    assert outcome.counts == {}
    outcome.same({"B": 3})


def test_a_scale_that_widens_is_refused():
    scale = np.full((1,) * 5, 0.25, np.float32)
    outcome = fuse_model(model(ATTENTION, QKV, weights={"scale": scale}))
    assert outcome.counts == {}
    outcome.same({"B": 2, "Q": 3, "K": 5})


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
def test_a_scale_of_any_rank_that_does_not(shape):
    scale = np.full(shape, 0.25, np.float32)
    outcome = fuse_model(model(ATTENTION, QKV, weights={"scale": scale}))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "Q": 3, "K": 5})


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (GELU["product then half"], ("0.5", "0.5004")),
        (GELU["product then half"], ("1.0)", "1.0009)")),
        (GELU["product then half"], ("1.4142135", "1.4150")),
        (GELU_TANH["pow"], ("3.0", "3.002")),
        (GELU_TANH["pow"], ("0.044715", "0.04475")),
    ],
)
def test_a_constant_that_is_nearly_right_is_refused(text, given):
    changed = text.replace(*given)
    assert changed != text
    body = "a = MatMul(x, w)\n" + spell(changed, "a", "y")
    outcome = fuse_model(model(body, "T[B, 5] x", weights={"w": (5, 4)}, opset=20))
    assert outcome.counts == {}


@pytest.mark.parametrize("root", ["1.4142", "1.41421356237"])
def test_a_constant_written_in_short_is_taken(root):
    text = spell(GELU["product then half"].replace("1.4142135", root), "a", "y")
    body = f"a = MatMul(x, w)\n{text}"
    outcome = fuse_model(model(body, "T[B, 5] x", weights={"w": (5, 4)}))
    assert outcome.counts == {"GemmAct": 1}


@pytest.mark.parametrize("over", ["30.025", "29.9"])
def test_a_cap_that_is_not_the_divisor_is_refused(over):
    text = f"""
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        raw = MatMul(q, kt)
        ratio = Div(raw, {over})
        bent = Tanh(ratio)
        capped = Mul(bent, 30.0)
        weights = Softmax<axis=-1>(capped)
        y = MatMul(weights, v)"""
    assert fuse_model(model(text, QKV)).counts == {}


@pytest.mark.parametrize("op", ["GreaterOrEqual", "LessOrEqual", "Greater", "Less", "Equal"])
def test_comparing_with_nan_is_false(op):
    text = f"c = {op}(nan, one)\ny = Where(c, x, zero)"
    weights = {"nan": np.float32(np.nan), "one": np.float32(1), "zero": np.float32(0)}
    weights = {name: np.array(value) for name, value in weights.items()}
    fuse_model(model(text, "T[B, 5] x", weights=weights)).same({"B": 3})
