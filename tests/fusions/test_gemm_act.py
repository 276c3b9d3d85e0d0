"""GemmAct: a matrix product, its bias, and the activation behind it."""

from __future__ import annotations

import re

import pytest

from tests.fusions.spellings import GELU, GELU_TANH, QUICK_GELU, RELU, SILU, every, spell
from tests.small import fuse_model, model

LINEAR = {
    "plain": "h = MatMul(x, w)\n",
    "biased": "h0 = MatMul(x, w)\nh = Add(h0, b)\n",
    "bias first": "h0 = MatMul(x, w)\nh = Add(b, h0)\n",
}
SIZES = ({"S": 1}, {"S": 9})
KINDS = every(relu=RELU, silu=SILU, gelu=GELU, gelu_tanh=GELU_TANH, quick_gelu=QUICK_GELU)


def gemm_act(
    text: str, *, inputs="T[2, S, 5] x", dtype="float", opset=18, outputs="T y", **weights
):
    weights = {k: v for k, v in {"w": (5, 7), "b": (7,), **weights}.items() if k in text}
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset))


@pytest.mark.parametrize(("kind", "text"), KINDS)
def test_every_activation_fuses(kind, text):
    outcome = gemm_act(LINEAR["biased"] + spell(text, "h", "y"))
    assert outcome.ops == ["GemmAct"]
    assert outcome.attribute("GemmAct", "activation") == kind.encode()
    outcome.same(*SIZES)


@pytest.mark.parametrize(("kind", "text"), [pair for pair in KINDS if pair[0] != "relu"])
def test_an_activation_of_the_layer_with_and_without_its_bias_is_refused(kind, text):
    """Each place that reads h may read the product alone."""
    spelt = spell(text, "h", "y")
    places = [match.start() for match in re.finditer(r"(?<=[(\s])h(?=[,)])", spelt)]
    for place in places if len(places) > 1 else ():
        mixed = f"{spelt[:place]}h0{spelt[place + 1 :]}"
        outcome = gemm_act(LINEAR["biased"] + mixed)
        assert "GemmAct" not in outcome.counts, mixed
        outcome.same(*SIZES)


@pytest.mark.parametrize("linear", LINEAR)
def test_every_linear_layer_fuses(linear):
    outcome = gemm_act(LINEAR[linear] + spell(SILU["mul"], "h", "y"))
    assert outcome.counts == {"GemmAct": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=1.0, beta=1.0>"])
def test_gemm(attributes):
    text = f"h = Gemm{attributes}(x, w, b)\n" + spell(RELU["relu"], "h", "y")
    shape = (7, 5) if "transB" in attributes else (5, 7)
    outcome = gemm_act(text, inputs="T[S, 5] x", w=shape)
    assert outcome.ops == ["GemmAct"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(("kind", "text"), KINDS[::4])
def test_fp16(kind, text):
    outcome = gemm_act(LINEAR["biased"] + spell(text, "h", "y"), dtype="float16")
    assert outcome.ops == ["GemmAct"]
    outcome.same(*SIZES)


def test_with_and_without_bias_in_one_model():
    text = LINEAR["biased"] + "y = Relu(h)\ng = MatMul(x, v)\nz = Relu(g)"
    outcome = gemm_act(text, outputs="T y, T z", v=(5, 3))
    assert outcome.counts == {"GemmAct": 2}
    assert {len(node.input) for node in outcome.after.graph.node} == {3}
    outcome.same(*SIZES)


QUICK = LINEAR["plain"] + spell(QUICK_GELU["mul"], "h", "y")
ERF = LINEAR["biased"] + spell(GELU["product then half"], "h", "y")
REFUSED = {
    "1.7 is not 1.702": (QUICK.replace("1.702", "1.7"), "y_m", "is 1.7, want 1.702"),
    "half": (ERF.replace("0.5", "0.6"), "y", "is 0.6, want 0.5"),
    "bias of rank 2": (ERF.replace("b)", "wide)"), "h", "bias is (3, 7), want (7)"),
    "bias of 1": (ERF.replace("b)", "one)"), "h", "bias is (1), want (7)"),
    "weight of rank 3": (ERF.replace("w)", "stack)"), "h0", "weight (2, 5, 7) is not a matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    weights = {"wide": (3, 7), "one": (1,), "stack": (2, 5, 7)}
    outcome = gemm_act(text, inputs="T[2, 3, 5] x", **weights)
    outcome.refused("GemmAct", node, reason)
    outcome.same()


@pytest.mark.parametrize("inner", ["h", "h0", "y_p"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = gemm_act(ERF, outputs=f"T y, T {inner}")
    outcome.refused("GemmAct", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = gemm_act(ERF + "z = Neg(h)", outputs="T y, T z")
    outcome.refused("GemmAct", "z", "h inside it is also read by z")


def test_a_refused_layer_does_not_take_the_activation():
    text = ERF + "g = MatMul(x, v)\nz = Relu(g)"
    outcome = gemm_act(text, outputs="T y, T h, T z", v=(5, 3))
    assert outcome.attribute("GemmAct", "activation") == b"relu"
    outcome.same(*SIZES)


def test_a_computed_weight_stays():
    outcome = gemm_act("h = MatMul(x, m)\ny = Relu(h)", inputs="T[S, 5] x, T[5, 7] m")
    assert outcome.counts == {}


def test_fp64_is_refused():
    gemm_act(ERF, dtype="double").refused("GemmAct", "y", "neither fp32, fp16, nor bf16")


def test_a_result_inside_that_leaves_under_another_name():
    """What keeps its name for an output does not stand between the layer and its activation."""
    text = "h = MatMul(x, w)\nhidden = Identity(h)\nagain = Identity(h)\ny = Relu(again)"
    outcome = fuse_model(model(text, "T[S, 5] x", "T y, T hidden, T again", {"w": (5, 7)}))
    outcome.refused("GemmAct", "h", "inside it leaves the graph")
    outcome.same({"S": 3})


@pytest.mark.parametrize("attributes", ["alpha=2.0", "beta=0.5", "transA=1", "alpha=0.5, transB=1"])
def test_a_gemm_that_is_no_layer_is_refused(attributes):
    text = f"h = Gemm<{attributes}>(x, w, b)\ny = Relu(h)"
    weight = (7, 5) if "transB" in attributes else (5, 7)
    x = "T[5, S] x" if "transA" in attributes else "T[S, 5] x"
    outcome = fuse_model(model(text, x, "T y", {"w": weight, "b": (7,)}))
    outcome.refused("GemmAct", "h", "is no plain x W + b")
    outcome.same({"S": 3})
