"""AddLayerNorm: the residual add and the norm behind it; the sum stays readable."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

NORM = "sum = Add(x, residual)\ny = LayerNormalization<epsilon=1e-12>(sum, gamma, beta)"
WRITTEN_OUT = """
    sum = Add(residual, x)
    mean = ReduceMean<axes=[-1]>(sum)
    centred = Sub(sum, mean)
    square = Pow(centred, 2.0)
    spread = ReduceMean<axes=[-1]>(square)
    variance = Add(spread, 1.0e-12)
    root = Sqrt(variance)
    unit = Div(centred, root)
    scaled = Mul(unit, gamma)
    y = Add(scaled, beta)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def add_layer_norm(text=NORM, *, dtype="float", outputs="T y", residual="B, S, 7", **weights):
    inputs = f"T[B, S, 7] x, T[{residual}] residual"
    weights = {"gamma": (7,), "beta": (7,), **weights}
    return fuse_model(model(text, inputs, outputs, weights, dtype, 17))


@pytest.mark.parametrize("text", [NORM, WRITTEN_OUT], ids=["operator", "written out"])
@pytest.mark.parametrize("outputs", ["T y", "T sum, T y"])
def test_every_spelling_fuses(text, outputs):
    outcome = add_layer_norm(text, outputs=outputs)
    assert outcome.ops == ["AddLayerNorm"]
    assert outcome.counts == {"AddLayerNorm": 1}
    assert outcome.attribute("AddLayerNorm", "epsilon") == pytest.approx(1e-12)
    outcome.same(*SIZES)


def test_fp16():
    outcome = add_layer_norm(NORM.replace("1e-12", "1e-5"), dtype="float16", outputs="T y, T sum")
    assert outcome.ops == ["AddLayerNorm"]
    outcome.same(*SIZES)


def test_the_default_epsilon():
    outcome = add_layer_norm(NORM.replace("<epsilon=1e-12>", ""))
    assert outcome.attribute("AddLayerNorm", "epsilon") == pytest.approx(1e-5)


@pytest.mark.parametrize("residual", ["7", "1, S, 7", "B, S, 1"])
def test_a_broadcast_residual_is_a_bias_and_stays(residual):
    outcome = add_layer_norm(residual=residual)
    assert outcome.ops == ["Add", "LayerNormalization"]
    outcome.same(*SIZES)


def test_a_norm_over_two_axes_is_refused():
    text = "sum = Add(x, residual)\ny = LayerNormalization<axis=1>(sum, wide, wide)"
    inputs = "T[B, 5, 7] x, T[B, 5, 7] residual"
    outcome = fuse_model(model(text, inputs, weights={"wide": (5, 7)}, opset=17))
    outcome.refused("AddLayerNorm", "y", "works along axis 1, want the last of 3")
    outcome.same({"B": 2})


def test_a_mean_that_is_read_is_refused():
    text = "sum = Add(x, residual)\ny, mean = LayerNormalization(sum, gamma, beta)"
    outcome = add_layer_norm(text, outputs="T y, float mean")
    outcome.refused("AddLayerNorm", "y", "its mean or deviation is read as well")
    outcome.same(*SIZES)


def test_another_stash_type_is_refused():
    outcome = add_layer_norm(NORM.replace("epsilon=1e-12", "stash_type=10"), dtype="float16")
    outcome.refused("AddLayerNorm", "y", "computes in another type than fp32")


def test_without_beta_zeros_are_added():
    outcome = add_layer_norm("sum = Add(x, residual)\ny = LayerNormalization(sum, gamma)")
    assert outcome.counts == {"AddLayerNorm": 1}
    outcome.same(*SIZES)


def test_a_norm_in_fp32_between_casts_keeps_its_weights():
    text = """
        sum = Add(x, residual)
        wide = Cast<to=1>(sum)
        gamma32 = Cast<to=1>(gamma)
        beta32 = Cast<to=1>(beta)
        normed = LayerNormalization(wide, gamma32, beta32)
        y = Cast<to=10>(normed)"""
    outcome = add_layer_norm(text, dtype="float16")
    assert outcome.counts == {"AddLayerNorm": 1}
    outcome.same(*SIZES)


def test_fp64_is_refused():
    add_layer_norm(dtype="double").refused("AddLayerNorm", "y", "neither fp32, fp16, nor bf16")
