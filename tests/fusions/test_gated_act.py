"""GatedAct: an activation times its partner, from two tensors or the halves of one."""

from __future__ import annotations

import pytest

from tests.fusions.spellings import GELU, GELU_TANH, QUICK_GELU, SILU, every, spell
from tests.small import fuse_model, model

TWO = "T[S, 6] gate, T[S, 6] up"
ONE = "T[S, 12] packed"
SPLIT = "gate, up = Split<axis=-1, num_outputs=2>(packed)\n"
SIZES = ({"S": 1}, {"S": 7}, {"S": 64})


def unit(activation: str, x="gate", up="up", y="y") -> str:
    return spell(activation, x, f"{y}_a") + f"{y} = Mul({y}_a, {up})\n"


def gated(text: str, inputs=TWO, *, dtype="float", outputs="T y", opset=18, **weights):
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset))


KINDS = every(silu=SILU, gelu=GELU, gelu_tanh=GELU_TANH)


@pytest.mark.parametrize(("kind", "text"), KINDS)
def test_every_spelling_fuses(kind, text):
    outcome = gated(unit(text))
    assert outcome.ops == ["GatedAct"]
    assert outcome.counts == {"GatedAct": 1}
    assert outcome.attribute("GatedAct", "activation") == kind.encode()
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("text", "opset"),
    [("a = Gelu(gate)", 20), ('a = Gelu<approximate="tanh">(gate)', 20), ("a = Swish(gate)", 24)],
)
def test_standard_activations(text, opset):
    outcome = gated(text + "\ny = Mul(up, a)", opset=opset)
    assert outcome.ops == ["GatedAct"]
    if opset < 24:
        outcome.same(*SIZES)


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, t in KINDS[::3]])
def test_fp16(kind, text):
    outcome = gated(unit(text), dtype="float16")
    assert outcome.ops == ["GatedAct"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("activation", [SILU["mul"], GELU["half of x first"], GELU_TANH["pow"]])
def test_the_halves_of_one_tensor(opset, activation):
    split = SPLIT if opset > 17 else SPLIT.replace(", num_outputs=2", "")
    outcome = gated(split + unit(activation), ONE, opset=opset)
    assert outcome.ops == ["GatedAct"]
    assert list(outcome.node("GatedAct").input) == ["packed"]
    outcome.same(*SIZES)


def test_a_half_that_another_node_reads():
    text = SPLIT + "a = Gelu(gate)\ny = Mul(a, up)\nz = Neg(gate)"
    outcome = gated(text, ONE, outputs="T y, T z", opset=20)
    assert sorted(outcome.ops) == ["GatedAct", "Neg", "Split"]
    assert len(outcome.node("GatedAct").input) == 2
    outcome.same(*SIZES)


def test_the_halves_in_the_other_order_stay_apart():
    outcome = gated(SPLIT + unit(SILU["mul"], x="up", up="gate"), ONE)
    assert outcome.ops == ["Split", "GatedAct"]
    assert list(outcome.node("GatedAct").input) == ["up", "gate"]
    outcome.same(*SIZES)


def test_a_half_that_leaves_the_graph():
    outcome = gated(SPLIT + unit(SILU["mul"]), ONE, outputs="T y, T up")
    assert outcome.ops == ["Split", "GatedAct"]
    outcome.same(*SIZES)


def test_unequal_parts_stay_apart():
    text = "gate, up, rest = Split<axis=-1>(packed, [5, 5, 2])\n" + unit(SILU["mul"])
    outcome = gated(text, ONE, outputs="T y, T rest")
    assert outcome.ops == ["Split", "GatedAct"]
    outcome.same(*SIZES)


def test_halves_of_another_axis_stay_apart():
    text = SPLIT.replace("axis=-1", "axis=0") + unit(SILU["mul"])
    outcome = gated(text, "T[4, 6] packed")
    assert outcome.ops == ["Split", "GatedAct"]
    outcome.same()


def test_packed_and_apart_in_one_model():
    text = SPLIT + unit(SILU["mul"]) + unit(SILU["mul"], "other", "third", "z")
    outcome = gated(text, f"{ONE}, T[S, 3] other, T[S, 3] third", outputs="T y, T z")
    assert outcome.counts == {"GatedAct": 2}
    outcome.same(*SIZES)


@pytest.mark.parametrize("up", ["6", "1, 6", "S, 1", "1"])
def test_a_partner_that_is_broadcast_stays(up):
    outcome = gated(unit(SILU["mul"]), f"T[S, 6] gate, T[{up}] up")
    assert outcome.counts == {}
    outcome.same(*SIZES)


def test_quick_gelu_is_no_gate():
    outcome = gated(unit(QUICK_GELU["mul"]))
    assert outcome.counts == {}
    outcome.same(*SIZES)


ERF = GELU["product then half"]


def test_a_wrong_constant_is_refused():
    outcome = gated(unit(ERF.replace("0.5", "0.4")))
    outcome.refused("GatedAct", "y_a", "is 0.4, want 0.5")
    outcome.same(*SIZES)


@pytest.mark.parametrize("inner", ["y_a", "y_a_e"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = gated(unit(ERF), outputs=f"T y, T {inner}")
    outcome.refused("GatedAct", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = gated(unit(SILU["mul"]) + "z = Neg(y_a)", outputs="T y, T z")
    outcome.refused("GatedAct", "z", "y_a inside it is also read by z")


def test_fp64_is_refused():
    gated(unit(SILU["mul"]), dtype="double").refused("GatedAct", "y", "neither fp32, fp16")


def test_several_activations_in_one_model():
    """One op has one function, which then takes the activation by its number."""
    outcome = gated(unit(SILU["mul"]) + unit(ERF, y="z"), outputs="T y, T z")
    assert outcome.counts["GatedAct"] == 2
    outcome.same(*SIZES)


def test_a_refused_unit_does_not_take_the_activation():
    text = unit(ERF, y="z") + unit(SILU["mul"])
    outcome = gated(text, outputs="T z, T z_a, T y")
    assert outcome.attribute("GatedAct", "activation") == b"silu"
    outcome.same(*SIZES)


def test_one_value_for_all_features_is_refused():
    text = SILU["mul"].replace("{x}", "gate").replace("{y}", "a") + "\ny = Mul(a, up)"
    outcome = fuse_model(model(text, "T[B, S, 6] gate, T[B, S, 1] up"))
    outcome.refused("GatedAct", "y", "up (B, S, 1) is broadcast over (B, S, 6)")
    outcome.same({"B": 2, "S": 3})


def test_another_slope_inside_the_sigmoid_is_refused():
    text = "s = Mul(gate, 1.3)\nt = Sigmoid(s)\na = Mul(gate, t)\ny = Mul(a, up)"
    outcome = fuse_model(model(text, "T[B, S, 6] gate, T[B, S, 6] up"))
    outcome.refused("GatedAct", "y", "is not what gates")
    outcome.same({"B": 2, "S": 3})
