"""A GELU that stands alone becomes the standard operator."""

from __future__ import annotations

import pytest

from tests.fusions.spellings import GELU, GELU_TANH, QUICK_GELU, every, spell
from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 7}, {"S": 64})


def gelu(text: str, *, dtype="float", opset=20, outputs="T y", inputs="T[S, 5] x, T[S, 5] other"):
    return fuse_model(model(text, inputs, outputs, {"row": (5,)}, dtype, opset))


@pytest.mark.parametrize(("kind", "text"), every(none=GELU, tanh=GELU_TANH))
def test_every_spelling_fuses(kind, text):
    outcome = gelu(spell(text, "x", "y"))
    assert outcome.ops == ["Gelu"]
    assert outcome.counts == {"Gelu": 1}
    assert outcome.attribute("Gelu", "approximate") == kind.encode()
    outcome.same(*SIZES)


@pytest.mark.parametrize("text", [GELU["half of x first"], GELU_TANH["pow"]])
def test_fp16(text):
    outcome = gelu(spell(text, "x", "y"), dtype="float16")
    assert outcome.counts == {"Gelu": 1}
    outcome.same(*SIZES)


def test_the_standard_operator_is_counted():
    outcome = gelu('y = Gelu<approximate="tanh">(x)')
    assert outcome.counts == {"Gelu": 1}
    assert outcome.fused.matches == ()


ERF, TANH = GELU["product then half"], GELU_TANH["pow"]
REFUSED = {
    "half": (ERF.replace("0.5", "0.51"), "y", "is 0.51, want 0.5"),
    "root": (ERF.replace("1.4142135", "1.5"), "y_d", "is 1.5, want 1.41421"),
    "one": (ERF.replace("1.0", "2.0"), "y_p", "is 2, want 1"),
    "no scalar": (ERF.replace("0.5", "row"), "y", "row is not a scalar constant"),
    "cube": (TANH.replace("3.0", "2.0"), "y_c", "is 2, want 3"),
    "cubic": (TANH.replace("0.044715", "0.044"), "y_i", "is 0.044, want 0.044715"),
    "slope": (TANH.replace("0.79788456", "0.8"), "y_k", "is 0.8, want 0.797885"),
    "tensor": (ERF.replace("Mul({x}, {y}_p)", "Mul(other, {y}_p)"), "y", "not the tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    outcome = gelu(spell(text, "x", "y"))
    outcome.refused("Gelu", node, reason)
    outcome.same(*SIZES)


def test_an_older_opset_says_so():
    outcome = gelu(spell(ERF, "x", "y"), opset=17)
    outcome.refused("Gelu", "y", "Gelu needs opset 20, the model has 17")
    outcome.same(*SIZES)


@pytest.mark.parametrize("inner", ["y_e", "y_p", "y_t"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = gelu(spell(ERF, "x", "y"), outputs=f"T y, T {inner}")
    outcome.refused("Gelu", inner, f"{inner} inside it leaves the graph")


def test_quick_gelu_is_another_function():
    outcome = gelu(spell(QUICK_GELU["mul"], "x", "y"))
    assert outcome.counts == {}
    outcome.same(*SIZES)
