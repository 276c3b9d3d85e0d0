"""RmsNorm: every spelling fuses, every near-miss says why, and the numbers stay."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

SQUARES = {"pow": "square = Pow(x, 2.0)", "mul": "square = Mul(x, x)"}
UNITS = {
    "rsqrt": "root = Sqrt(variance)\ninverse = Reciprocal(root)\nunit = Mul(x, inverse)",
    "one_over": "root = Sqrt(variance)\ninverse = Div(1.0, root)\nunit = Mul(inverse, x)",
    "div": "root = Sqrt(variance)\nunit = Div(x, root)",
    "pow": "inverse = Pow(variance, -0.5)\nunit = Mul(x, inverse)",
    "root_pow": "root = Sqrt(variance)\ninverse = Pow(root, -1.0)\nunit = Mul(x, inverse)",
}
REST = """
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-5)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def rms_norm(text: str, *, dtype="float", width=9, opset=17, outputs="T y", **weights):
    return fuse_model(
        model(
            text,
            f"T[B, S, {width}] x, T[B, S, {width}] other",
            outputs,
            {"gamma": (width,), **weights},
            dtype,
            opset,
        )
    )


def spelt(square="mul", unit="div", last="y = Mul(gamma, unit)") -> str:
    return SQUARES[square] + REST + UNITS[unit] + "\n" + last


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("square", SQUARES)
def test_every_spelling_fuses(square, unit):
    for last in ("y = Mul(gamma, unit)", "y = Mul(unit, gamma)"):
        outcome = rms_norm(spelt(square, unit, last))
        assert outcome.ops == ["RmsNorm"]
        assert outcome.attribute("RmsNorm", "epsilon") == pytest.approx(1e-5)
        outcome.same(*SIZES)


ISLAND = """
    wide = Cast<to=1>(x)
    two = Constant<value_float=2.0>()
    square = Pow(wide, two)
    mean = ReduceMean<axes=[2]>(square)
    epsilon = Constant<value_float=1e-6>()
    variance = Add(epsilon, mean)
    root = Sqrt(variance)
    inverse = Reciprocal(root)
    unit = Mul(wide, inverse)
"""


@pytest.mark.parametrize(
    "last",
    [
        "narrow = Cast<to=10>(unit)\ny = Mul(gamma, narrow)",
        "gamma32 = Cast<to=1>(gamma)\nwhole = Mul(unit, gamma32)\ny = Cast<to=10>(whole)",
    ],
)
@pytest.mark.parametrize("width", [1, 8, 33])
def test_the_fp32_island_of_an_fp16_model(last, width):
    outcome = rms_norm(ISLAND + last, dtype="float16", width=width)
    assert outcome.ops == ["RmsNorm"]
    outcome.same(*SIZES)


def test_the_standard_operator():
    outcome = rms_norm("y = RMSNormalization<axis=-1, epsilon=1e-6>(x, gamma)", opset=23)
    assert outcome.ops == ["RmsNorm"]
    assert outcome.attribute("RmsNorm", "epsilon") == pytest.approx(1e-6)


def test_the_standard_operator_over_two_axes_stays():
    text = "y = RMSNormalization<axis=1>(x, gamma)"
    rms_norm(text, opset=23).refused("RmsNorm", "y", "works along axis 1, want the last of 3")


def test_axes_as_an_input():
    outcome = rms_norm(spelt().replace("<axes=[-1]>(square)", "(square, [-1])"), opset=18)
    assert outcome.ops == ["RmsNorm"]
    outcome.same(*SIZES)


def test_gamma_with_leading_ones():
    outcome = rms_norm(spelt(), gamma=(1, 1, 9))
    assert outcome.ops == ["RmsNorm"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("unit", ["rsqrt", "one_over", "div", "root_pow"])
def test_no_epsilon_is_one_of_zero(unit):
    """Helium's 1e-8, which onnxscript's optimizer takes for nothing."""
    outcome = rms_norm(spelt(unit=unit).replace("Add(mean, 1.0e-5)", "Identity(mean)"))
    assert outcome.counts == {"RmsNorm": 1}
    assert outcome.attribute("RmsNorm", "epsilon") == 0
    outcome.same(*SIZES)


REFUSED = {
    "axis": (spelt().replace("[-1]", "[1]"), "mean", "reduces over axes [1], want the last of 3"),
    "two axes": (spelt().replace("[-1]", "[1, 2]"), "mean", "reduces over axes [1, 2]"),
    "cube": (spelt("pow").replace("2.0", "3.0"), "square", "is 3, want 2"),
    "two over": (spelt(unit="one_over").replace("1.0,", "2.0,"), "inverse", "is 2, want 1"),
    "exponent": (spelt(unit="pow").replace("-0.5", "-0.25"), "inverse", "is -0.25, want -0.5"),
    "root exponent": (spelt(unit="root_pow").replace("-1.0)", "-0.5)"), "inverse", "want -1"),
}

OUTSIDE = spelt().replace("Add(mean, 1.0e-5)", "Identity(mean)")
REFUSED |= {
    "epsilon outside of the root": (
        OUTSIDE.replace("unit = Div(x, root)", "total = Add(root, 0.01)\nunit = Div(x, total)"),
        "total",
        "adds epsilon outside of the root",
    ),
    "epsilon subtracted": (spelt().replace("Add(mean", "Sub(mean"), "variance", "subtracts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    outcome = rms_norm(text)
    outcome.refused("RmsNorm", node, reason)
    outcome.same(*SIZES)


def test_an_epsilon_for_each_column_is_refused():
    outcome = rms_norm(spelt().replace("1.0e-5", "epsilons"), epsilons=(9,))
    outcome.refused("RmsNorm", "variance", "epsilons is not a scalar constant")


def test_a_computed_epsilon_is_refused():
    text = "epsilon = ReduceMax<axes=[2]>(other)\n" + spelt().replace("1.0e-5", "epsilon")
    rms_norm(text).refused("RmsNorm", "epsilon", "is computed, want a constant")


def test_gamma_of_another_length_is_refused():
    """The norm fuses without its weight, which stays a product behind it."""
    outcome = rms_norm(spelt(), gamma=(1,))
    outcome.refused_at("y", "gamma has shape (1), want (9)")
    assert outcome.ops == ["RmsNorm", "Mul"]
    outcome.same(*SIZES)


def test_gamma_that_widens_is_refused():
    outcome = rms_norm(spelt(), gamma=(4, 1, 1, 9))
    outcome.refused_at("y", "gamma widens")
    assert outcome.ops == ["RmsNorm", "Mul"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("inner", ["mean", "variance", "root", "square"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = rms_norm(spelt(), outputs=f"T y, T {inner}")
    outcome.refused("RmsNorm", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = rms_norm(spelt() + "\nz = Neg(mean)", outputs="T y, T z")
    outcome.refused("RmsNorm", "z", "mean inside it is also read by")
    outcome.same(*SIZES)


def test_a_second_reader_of_what_the_weight_scales():
    """The norm without its weight gives what both read."""
    outcome = rms_norm(spelt() + "\nz = Neg(unit)", outputs="T y, T z, T unit")
    outcome.refused_at("y", "unit inside it leaves the graph")
    assert outcome.counts == {"RmsNorm": 1}
    outcome.same(*SIZES)


def test_another_tensor_under_the_root_is_refused():
    outcome = rms_norm(spelt().replace("Mul(x, x)", "Mul(x, other)"))
    outcome.refused("RmsNorm", "y", "the operands are not the tensors expected")
    outcome.same(*SIZES)


def test_another_tensor_over_the_root_stays():
    outcome = rms_norm(spelt().replace("Div(x, root)", "Div(other, root)"))
    assert outcome.counts == {}
    outcome.same(*SIZES)


def test_fp64_is_refused():
    rms_norm(spelt(), dtype="double").refused("RmsNorm", "y", "neither fp32, fp16, nor bf16")


def test_an_input_that_is_wide_of_its_own():
    """Residual sums of TorchScript's fp16 are fp32, and rounded before the weights."""
    text = ISLAND.replace("wide = Cast<to=1>(x)", "cast = Cast<to=1>(x)\nwide = Add(cast, cast)")
    outcome = rms_norm(text + "narrow = Cast<to=10>(unit)\ny = Mul(gamma, narrow)", dtype="float16")
    assert outcome.counts == {"AddRmsNorm": 1}
    outcome.same(*SIZES)


def test_axes_that_are_sizes_are_refused():
    """They are known by name alone, as those of the input are."""
    text = spelt().replace("ReduceMean<axes=[-1]>(square)", "ReduceMean(square, axes)")
    outcome = rms_norm("axes = Shape<start=1, end=2>(x)\n" + text, opset=18)
    outcome.refused("RmsNorm", "mean", "reduces over axes None, want the last of 3")


def test_a_gate_between_casts_is_not_told_of():
    """Falcon-H1 gates in fp32 what it gives in fp16: no mean is taken."""
    text = """
        sigmoid = Sigmoid(x)
        gate = Mul(x, sigmoid)
        wide = Cast<to=1>(gate)
        product = Mul(wide, state)
        y = Cast<to=10>(product)
    """
    inputs = "float16[B, S, 8] x, float[B, S, 8] state"
    outcome = fuse_model(model(text, inputs, dtype="float16"))
    assert [miss.kind for miss in outcome.fused.misses] == []
