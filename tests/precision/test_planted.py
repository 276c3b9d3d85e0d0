"""What overflows in fp16, planted: the result is finite and right, and the report says why."""

from __future__ import annotations

import numpy as np
import pytest

from tests.precision.converted import convert, feeds
from tests.small import model

RMS = """
    square = Mul({x}, {x})
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-6)
    root = Sqrt(variance)
    unit = Div({x}, root)
    normed = Mul(unit, gamma)
"""
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def normed(before: str, weights: dict, opset: int = 17):
    text = before + RMS.format(x="h") + "y = MatMul(normed, w)"
    return model(text, "T[B, 16] x", weights={"gamma": (16,), "w": (16, 8), **weights}, opset=opset)


@PRECISIONS
def test_activations_of_1e5_into_a_norm(precision, tmp_path):
    planted = normed("big = Mul(x, 1.0e5)\nh = Add(big, bias)", {"bias": (16,)})
    result = convert(planted, tmp_path, precision)
    result.same(feeds(planted, B=5))
    assert result.ops.count("RmsNorm") == 1
    if precision == "fp16":
        assert "h reaches" in result.kept["normed"]
        assert result.types()["normed"] == "float"
    else:
        assert result.types()["normed"] == "bfloat16"


def test_a_norm_written_out_with_squares_beyond_the_limit(tmp_path):
    """|x| of 1200 is nothing; its square is 1.4e6."""
    text = "h = Mul(x, 1200.0)\nmean = ReduceMean<axes=[1], keepdims=1>(h)\nd = Sub(h, mean)\n"
    text += "two = Mul(d, d)\nv = ReduceMean<axes=[1], keepdims=1>(two)\ne = Add(v, 1.0e-5)\n"
    text += "r = Sqrt(e)\nn = Div(d, r)\ny = MatMul(n, w)"
    planted = model(text, "T[B, 16, 4] x", weights={"w": (4, 4)}, opset=17)
    result = convert(planted, tmp_path)
    result.same(feeds(planted, B=3))
    assert "two reaches" in result.kept["two"]
    assert result.casts() == [("float", "float16"), ("float16", "float")]


ATTENTION = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.25)
    masked = Add(scores, mask)
    weights = Softmax<axis=-1>(masked)
    y = MatMul(weights, v)
"""
QKV = "T[B, 2, S, 16] q, T[B, 2, S, 16] k, T[B, 2, S, 16] v"


@PRECISIONS
@pytest.mark.parametrize("fill", [-1e30, float(np.finfo(np.float32).min), -1e4, -np.inf])
def test_masks_keep_their_meaning(fill, precision, tmp_path):
    planted = model(
        f"mask = Where(keep, 0.0, {fill:e})\n{ATTENTION}".replace("-inf", "-inf"),
        f"{QKV}, bool[B, 1, S, S] keep",
    )
    drawn = feeds(planted, B=2, S=6)
    keep = np.tril(np.ones((2, 1, 6, 6), bool))
    keep[0, 0, 3] = np.isinf(fill)  # a row that is hidden throughout weighs all keys alike
    result = convert(planted, tmp_path, precision)
    assert result.ops.count("FlashAttention") == 1
    result.same(drawn | {"keep": keep})


def test_a_finite_mask_around_an_attention_that_is_not_fused(tmp_path):
    text = ATTENTION.replace("kt)\n", "kt)\nseen = Identity(raw)\n").replace(
        "y = MatMul(weights, v)", "z = Erf(weights)\ny = MatMul(z, v)"
    )
    planted = model(f"mask = Where(keep, 0.0, -1.0e30)\n{text}", f"{QKV}, bool[B, 1, S, S] keep")
    keep = np.ones((2, 1, 6, 6), bool)
    keep[:, :, 2] = False
    keep[:, :, :, 5] = False
    result = convert(planted, tmp_path)
    result.same(feeds(planted, B=2, S=6) | {"keep": keep})


def test_weights_of_7e4(tmp_path):
    heavy = np.full((16, 8), 7e4, np.float32)
    text = "h = MatMul(x, w)\ns = Mul(h, 1.0e-3)\ny = MatMul(s, v)"
    planted = model(text, "T[B, 16] x", weights={"w": heavy, "v": (8, 4)})
    result = convert(planted, tmp_path)
    result.same(feeds(planted, B=3))
    assert result.kept["h"] == "w holds 7e+04, fp16 ends at 65504"
    assert result.report["products"] == {"fp16": 1, "fp32": 1}


def test_weights_that_are_mostly_denormal(tmp_path):
    small = (np.arange(128).reshape(16, 8) * 1e-8).astype(np.float32)
    planted = model("h = MatMul(x, w)\ny = Mul(h, 1.0e6)", "T[B, 16] x", weights={"w": small})
    result = convert(planted, tmp_path)
    result.same(feeds(planted, B=3))
    assert "127 of 127 values of w are below fp16's smallest" in result.kept["h"]


def test_a_softmax_over_scores_of_1e5(tmp_path):
    planted = model(
        "s = Mul(x, 1.0e5)\np = Softmax<axis=-1>(s)\ny = MatMul(p, w)",
        "T[B, 32] x",
        weights={"w": (32, 8)},
    )
    result = convert(planted, tmp_path)
    result.same(feeds(planted, B=4))
    assert "p" in result.kept
    assert result.casts() == [("float", "float16"), ("float16", "float")]


def test_an_attention_whose_scores_reach_1e5(tmp_path):
    """Inside of the fused op the product is rounded to fp16 before the softmax sees it."""
    text = "big = Mul(q0, 3000.0)\nq = Identity(big)\n" + ATTENTION.replace(", mask", ", 0.0")
    planted = model(text, QKV.replace("] q,", "] q0,"))
    result = convert(planted, tmp_path)
    assert result.ops.count("FlashAttention") == 1
    result.same(feeds(planted, B=2, S=6))
    assert "y/FlashAttention's product reaches" in result.kept["y"]


def test_inputs_that_random_ones_do_not_show(tmp_path):
    """Calibration with the user's inputs finds what standard normal ones never reach."""
    planted = normed("h = Add(x, bias)", {"bias": (16,)})
    drawn = feeds(planted, B=5)
    large = {"x": drawn["x"] * 3e4}
    assert convert(planted, tmp_path).kept == {}
    result = convert(planted, tmp_path, samples=large)
    assert "h reaches" in result.kept["normed"]
    result.same(large)
    assert result.report["ranges"] == "1 samples of samples.npz"
