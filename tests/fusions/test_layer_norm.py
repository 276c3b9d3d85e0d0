"""LayerNormalization written out becomes the standard operator, or says why not."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

UNITS = {
    "div": "unit = Div(centred, root)",
    "reciprocal": "inverse = Reciprocal(root)\nunit = Mul(inverse, centred)",
    "one_over": "inverse = Div(1.0, root)\nunit = Mul(centred, inverse)",
    "pow": "inverse = Pow(variance, -0.5)\nunit = Mul(centred, inverse)",
    "root_pow": "inverse = Pow(root, -1.0)\nunit = Mul(centred, inverse)",
}
SQUARES = {"pow": "square = Pow(centred, 2.0)", "mul": "square = Mul(centred, centred)"}
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def spelt(square="pow", unit="div", last="scaled = Mul(unit, gamma)\ny = Add(scaled, beta)") -> str:
    return f"""
        mean = ReduceMean<axes=[-1]>(x)
        centred = Sub(x, mean)
        {SQUARES[square]}
        spread = ReduceMean<axes=[-1]>(centred_square)
        variance = Add(spread, 1.0e-5)
        root = Sqrt(variance)
        {UNITS[unit]}
        {last}
    """.replace("centred_square", "square")


def layer_norm(text: str, *, dtype="float", opset=17, outputs="T y", width=9, **weights):
    inputs = f"T[B, S, {width}] x, T[B, S, {width}] other"
    weights = {"gamma": (width,), "beta": (width,), **weights}
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("square", SQUARES)
def test_every_spelling_fuses(square, unit):
    last = "scaled = Mul(gamma, unit)\ny = Add(beta, scaled)"
    outcome = layer_norm(spelt(square, unit, last))
    assert outcome.ops == ["LayerNormalization"]
    assert outcome.counts == {"LayerNormalization": 1}
    assert outcome.attribute("LayerNormalization", "epsilon") == pytest.approx(1e-5)
    outcome.same(*SIZES)


@pytest.mark.parametrize("width", [1, 8, 33])
def test_fp16(width):
    outcome = layer_norm(spelt(), dtype="float16", width=width)
    assert outcome.ops == ["LayerNormalization"]
    if width > 1:  # of one element the variance is 0, and fp16 rounds epsilon
        outcome.same(*SIZES)


def test_opset_13_is_raised():
    outcome = layer_norm(spelt(), opset=13)
    assert outcome.ops == ["LayerNormalization"]
    outcome.same(*SIZES)


def test_the_standard_operator_is_counted():
    outcome = layer_norm("y = LayerNormalization(x, gamma, beta)")
    assert outcome.counts == {"LayerNormalization": 1}
    outcome.same(*SIZES)


SCALED = "scaled = Mul(unit, gamma)\n"
REFUSED = {
    "mean axis": (spelt().replace("[-1]>(x)", "[1]>(x)"), "mean", "reduces over axes [1]"),
    "spread axis": (spelt().replace("[-1]>(square)", "[1]>(square)"), "spread", "axes [1]"),
    "power": (spelt().replace("2.0", "4.0"), "square", "is 4, want 2"),
    "one": (spelt(unit="one_over").replace("1.0,", "3.0,"), "inverse", "is 3, want 1"),
    "epsilon": (spelt().replace("1.0e-5", "epsilons"), "variance", "epsilons is not a scalar"),
    "epsilon outside": (
        spelt()
        .replace("Add(spread, 1.0e-5)", "Identity(spread)")
        .replace("centred, root", "centred, total")
        .replace("unit =", "total = Add(root, 0.01)\nunit ="),
        "total",
        "adds epsilon outside of the root",
    ),
    "epsilon subtracted": (spelt().replace("Add(spread", "Sub(spread"), "variance", "subtracts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    outcome = layer_norm(text, epsilons=(9,))
    outcome.refused("LayerNormalization", node, reason)
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("text", "outputs", "reason"),
    [
        (spelt().replace("gamma", "short"), "T y", "short has shape (1), want (9)"),
        (spelt(), "T y, T unit", "unit inside it leaves the graph"),
    ],
)
def test_the_norm_without_its_weights_remains(text, outputs, reason):
    outcome = layer_norm(text, outputs=outputs, short=(1,))
    outcome.refused_at("y", reason)
    assert outcome.counts == {"LayerNormalization": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("inner", ["mean", "centred", "square", "root"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = layer_norm(spelt(), outputs=f"T y, T {inner}")
    outcome.refused("LayerNormalization", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_without_beta(dtype):
    outcome = layer_norm(spelt(last="y = Mul(unit, gamma)"), dtype=dtype)
    assert outcome.ops == ["LayerNormalization"]
    outcome.same(*SIZES)


def test_a_beta_of_another_shape_stays_an_add():
    outcome = layer_norm(spelt().replace("beta", "other"))
    assert outcome.ops == ["LayerNormalization", "Add"]
    outcome.same(*SIZES)


def test_a_scaled_result_that_leaves_the_graph():
    outcome = layer_norm(spelt(), outputs="T y, T scaled")
    assert outcome.ops == ["LayerNormalization", "Add"]
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = layer_norm(spelt() + "\nz = Neg(root)", outputs="T y, T z")
    outcome.refused("LayerNormalization", "z", "root inside it is also read by z")


def test_the_mean_of_another_tensor_is_no_layer_norm():
    outcome = layer_norm(spelt().replace("[-1]>(x)", "[-1]>(other)"))
    outcome.refused("LayerNormalization", "y", "the operands are not the tensors expected")
    outcome.same(*SIZES)


def test_fp64_is_refused():
    layer_norm(spelt(), dtype="double").refused("LayerNormalization", "y", "neither fp32")


def test_two_norms_of_one_tensor():
    """As GPT-NeoX's parallel residual has them, written out before opset 17."""
    text = spelt() + "\nscaled2 = Mul(unit, beta)\nz = Add(scaled2, gamma)"
    outcome = layer_norm(text, outputs="T y, T z")
    assert outcome.counts == {"LayerNormalization": 2}
    assert outcome.ops == ["LayerNormalization"] * 2
    outcome.same(*SIZES)
