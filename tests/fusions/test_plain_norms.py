"""Norms without weights, as they stand before a modulation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 3}, {"B": 1, "S": 1})
RMS = """
    square = Mul(x, x)
    mean = ReduceMean(square, [-1])
    variance = Add(mean, 1.0e-6)
    root = Sqrt(variance)
    unit = Div(x, root)
"""
LAYER = """
    mean = ReduceMean(x, [-1])
    centred = Sub(x, mean)
    square = Pow(centred, 2.0)
    spread = ReduceMean(square, [-1])
    variance = Add(spread, 1.0e-6)
    root = Sqrt(variance)
    inverse = Reciprocal(root)
    unit = Mul(centred, inverse)
"""
KINDS = {"RmsNorm": RMS, "LayerNormalization": LAYER}
MODULATED = """
    factor = Add(scale, 1.0)
    scaled = Mul(unit, factor)
    y = Add(scaled, shift)
"""
MODULATION = "T[B, S, 8] x, T[B, 1, 8] scale, T[B, 1, 8] shift"


@pytest.mark.parametrize("kind", KINDS)
def test_it_fuses_alone(kind):
    outcome = fuse_model(model(KINDS[kind] + "y = Identity(unit)", "T[B, S, 8] x"))
    assert outcome.counts == {kind: 1}
    assert outcome.ops == [kind]
    outcome.same(*SIZES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_modulation_does_not_block_it(kind):
    outcome = fuse_model(model(KINDS[kind] + MODULATED, MODULATION))
    assert outcome.counts == {kind: 1}
    assert outcome.fused.misses == ()
    outcome.same(*SIZES)


@pytest.mark.parametrize(("kind", "wide"), [("RmsNorm", "AddRmsNorm")])
def test_a_residual_goes_in(kind, wide):
    text = "x = Add(before, residual)\n" + KINDS[kind] + MODULATED
    inputs = MODULATION.replace("] x", "] before, T[B, S, 8] residual", 1)
    outcome = fuse_model(model(text, inputs, "T y, T x"))
    assert outcome.counts == {wide: 1}
    outcome.same(*SIZES)


def test_the_fp32_island_of_an_fp16_model():
    text = "wide = Cast<to=1>(x)\n" + RMS.replace("(x", "(wide").replace(", x)", ", wide)")
    text = text.replace("1.0e-6", "epsilon") + "y = Cast<to=10>(unit)"
    weights = {"epsilon": np.array(1e-6, np.float32)}
    outcome = fuse_model(model(text, "T[B, S, 8] x", weights=weights, dtype="float16"))
    assert outcome.counts == {"RmsNorm": 1}
    outcome.same(*SIZES)


def test_no_epsilon_is_an_epsilon_of_zero():
    text = RMS.replace("variance = Add(mean, 1.0e-6)\n", "").replace("variance", "mean")
    outcome = fuse_model(
        model(text + "y = Mul(unit, gamma)", "T[B, S, 8] x", "T y", {"gamma": (8,)})
    )
    assert outcome.attribute("RmsNorm", "epsilon") == 0
    outcome.same(*SIZES)
    outcome.same(SIZES[0], x=np.zeros((2, 3, 8), np.float32))


REFUSED = {
    "another axis": (RMS.replace("[-1]", "[1]"), "mean", "reduces over axes [1]"),
    "another power": (RMS.replace("Mul(x, x)", "Pow(x, 3.0)"), "square", "want 2"),
    "epsilon outside": (
        RMS.replace("Add(mean, 1.0e-6)", "Sqrt(mean)").replace(
            "Sqrt(variance)", "Add(variance, 1.0e-6)"
        ),
        "root",
        "adds epsilon outside of the root",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    outcome = fuse_model(model(text + "y = Neg(unit)", "T[B, S, 8] x"))
    outcome.refused("RmsNorm", node, reason)
    outcome.same(*SIZES)


@pytest.mark.parametrize("inverse", ["Reciprocal(root)", "Pow(variance, half)"])
def test_a_layer_norm_of_another_power_is_told_of_behind_a_cast(inverse):
    """No LayerNorm with weights reads through it, and a line of an RmsNorm misleads."""
    text = "wide = Cast<to=1>(x)\n" + LAYER.replace("(x", "(wide").replace("1.0e-6", "epsilon")
    text = text.replace(
        "square = Pow(centred, 2.0)", "size = Abs(centred)\nsquare = Pow(size, 2.1)"
    )
    text = text.replace("Reciprocal(root)", inverse)
    text += MODULATED.replace("unit", "narrow").replace(
        "factor =", "narrow = Cast<to=10>(unit)\nfactor ="
    )
    weights = {"epsilon": np.array(1e-6, np.float32), "half": np.array(-0.5, np.float32)}
    outcome = fuse_model(model(text, MODULATION, weights=weights, dtype="float16"))
    outcome.refused("LayerNormalization", "size", "is Abs, want Sub")
    outcome.same(*SIZES)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_left_alone(kind):
    text = "x = Reshape(image, [0, 2, -1])\n" + KINDS[kind] + "y = Reshape(unit, [0, 4, 3, 3])"
    outcome = fuse_model(model(text, "T[B, 4, 3, 3] image"))
    assert outcome.counts == {}
    assert outcome.fused.misses == ()
    outcome.same({"B": 2})


def test_groups_of_the_features_of_a_token_are_normalised():
    """Mamba 2 does, in Zamba 2 and Nemotron-H."""
    text = "x = Reshape(tokens, [0, 0, -1, 6])\n{}y = Reshape(unit, [0, 0, 12])"
    outcomes = {k: fuse_model(model(text.format(KINDS[k]), "T[B, S, 12] tokens")) for k in KINDS}
    assert outcomes["RmsNorm"].counts == {"RmsNorm": 1}
    assert outcomes["LayerNormalization"].counts == {}
    for outcome in outcomes.values():
        outcome.same({"B": 2, "S": 3})


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_that_no_token_has_stays(kind):
    outcome = fuse_model(model(KINDS[kind] + "y = Neg(unit)", "T[B, 20000] x"))
    assert outcome.counts == {}
    outcome.same({"B": 2})


def test_an_unknown_length_is_refused():
    outcome = fuse_model(model(RMS + "y = Neg(unit)", "T[B, H] x"))
    outcome.refused("RmsNorm", "unit", "the length that is normalised is H")


def test_a_double_island_is_refused():
    """fp64 holds squares that overflow in fp32."""
    text = "wide = Cast<to=11>(x)\n" + RMS.replace("(x", "(wide").replace(", x)", ", wide)")
    text = text.replace("1.0e-6", "epsilon") + "narrow = Cast<to=1>(unit)\ny = Mul(narrow, gamma)"
    weights = {"epsilon": np.array(1e-6, np.float64), "gamma": (8,)}
    outcome = fuse_model(model(text, "T[B, S, 8] x", weights=weights))
    outcome.refused("RmsNorm", "wide", "casts to another type than fp32, fp16, or bf16")
    outcome.same(SIZES[0], x=np.full((2, 3, 8), 1e22, np.float32))


def test_a_norm_of_a_difference_times_a_number_is_told_of_as_nothing_else():
    """Differential attention has it: neither a mean is missing, nor a weight of its size."""
    text = """
        less = Mul(b, 0.25)
        x = Sub(a, less)
        square = Mul(x, x)
        mean = ReduceMean(square, [-1])
        variance = Add(mean, 1.0e-5)
        root = Sqrt(variance)
        inverse = Reciprocal(root)
        unit = Mul(x, inverse)
        y = Mul(unit, 0.5)
    """
    outcome = fuse_model(model(text, "T[B, S, 8] a, T[B, S, 8] b"))
    assert outcome.counts["RmsNorm"] == 1
    assert outcome.fused.misses == ()
    outcome.same({"B": 2, "S": 3})
