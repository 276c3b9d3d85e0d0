"""AddRmsNorm: the residual add and the norm behind it; the sum stays readable."""

from __future__ import annotations

import pytest

from tests.small import RMS_NORM_WIDE, fuse_model, model

NORM = """
    square = Mul(sum, sum)
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-6)
    root = Sqrt(variance)
    unit = Div(sum, root)
    y = Mul(unit, gamma)
"""
ISLAND = RMS_NORM_WIDE.replace("<to=T>", "<to=10>")
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def add_rms_norm(text: str, *, dtype="float", outputs="T y", residual="B, S, 7", **weights):
    inputs = f"T[B, S, 7] x, T[{residual}] residual"
    return fuse_model(model(text, inputs, outputs, {"gamma": (7,), **weights}, dtype, 17))


@pytest.mark.parametrize("add", ["sum = Add(x, residual)", "sum = Add(residual, x)"])
@pytest.mark.parametrize("outputs", ["T y", "T y, T sum", "T sum, T y"])
def test_every_spelling_fuses(add, outputs):
    outcome = add_rms_norm(add + NORM, outputs=outputs)
    assert outcome.counts == {"AddRmsNorm": 1}
    assert outcome.ops == ["AddRmsNorm"]
    outcome.same(*SIZES)


def test_fp16_reads_the_rounded_sum():
    outcome = add_rms_norm("sum = Add(x, residual)" + ISLAND, dtype="float16", outputs="T y, T sum")
    assert outcome.ops == ["AddRmsNorm"]
    outcome.same(*SIZES)


def test_the_one_that_gemma_adds_to_its_weight_is_a_constant():
    """So the plugin needs no form of its own for 1 + w."""
    text = ISLAND.replace(
        """narrow = Cast<to=10>(unit)
    y = Mul(gamma, narrow)""",
        """one = Constant<value_float=1.0>()
    gamma32 = Cast<to=1>(gamma)
    gamma1 = Add(gamma32, one)
    scaled = Mul(unit, gamma1)
    y = Cast<to=10>(scaled)""",
    )
    outcome = add_rms_norm("sum = Add(x, residual)" + text, dtype="float16")
    assert outcome.ops == ["AddRmsNorm"]
    outcome.same(*SIZES)


def test_the_sum_feeds_the_next_block():
    outcome = add_rms_norm("sum = Add(x, residual)" + NORM + "z = Add(sum, y)", outputs="T z")
    assert outcome.ops == ["AddRmsNorm", "Add"]
    outcome.same(*SIZES)


def test_a_tensor_added_to_itself():
    outcome = add_rms_norm("sum = Add(x, x)" + NORM + "z = Add(y, residual)", outputs="T z")
    assert outcome.counts == {"AddRmsNorm": 1}
    outcome.same(*SIZES)


def test_two_norms_that_share_their_statistics():
    """Equal computations are done once, so both gammas read one tensor inside; the sum is one."""
    text = "sum = Add(x, residual)" + NORM + "z = Mul(unit, gamma2)"
    outcome = add_rms_norm(text, outputs="T y, T z", gamma2=(7,))
    assert outcome.counts == {"AddRmsNorm": 1, "RmsNorm": 1}
    assert "Sqrt" not in outcome.ops
    outcome.same(*SIZES)


@pytest.mark.parametrize("residual", ["7", "1, S, 7", "B, S, 1", "1, 1, 7"])
def test_a_broadcast_residual_is_a_bias_and_stays(residual):
    outcome = add_rms_norm("sum = Add(x, residual)" + NORM, residual=residual)
    assert outcome.ops == ["Add", "RmsNorm"]
    outcome.same(*SIZES)


def test_a_residual_of_another_symbol_stays():
    outcome = add_rms_norm("sum = Add(x, residual)" + NORM, residual="C, S, 7")
    assert outcome.ops == ["Add", "RmsNorm"]
    outcome.same({"B": 2, "C": 2, "S": 3}, {"B": 3, "C": 1, "S": 3}, {"B": 1, "C": 3, "S": 3})


def test_a_constant_residual_of_another_shape_stays():
    outcome = add_rms_norm("sum = Add(x, row)" + NORM, row=(7,))
    assert outcome.ops == ["Add", "RmsNorm"]
    outcome.same(*SIZES)
