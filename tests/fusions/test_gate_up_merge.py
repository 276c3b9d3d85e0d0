"""Gate and up projections of one tensor become one matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.numpy_helper import to_array

from tests.fusions.spellings import GELU, SILU, spell
from tests.small import fuse_model, model

LAYERS = {
    "plain": "gate = MatMul(x, wg)\nup = MatMul(x, wu)\n",
    "biased": """
        g0 = MatMul(x, wg)
        gate = Add(g0, bg)
        u0 = MatMul(x, wu)
        up = Add(bu, u0)
    """,
    "one bias": "g0 = MatMul(x, wg)\ngate = Add(g0, bg)\nup = MatMul(x, wu)\n",
}
WEIGHTS = {"wg": (5, 7), "wu": (5, 7), "bg": (7,), "bu": (7,)}
SIZES = ({"S": 1}, {"S": 9})


def gated(layers: str, activation=SILU["mul"], *, dtype="float", outputs="T y", **weights):
    text = layers + spell(activation, "gate", "a") + "y = Mul(a, up)\n"
    inputs = "T[2, S, 5] x, T[2, S, 5] other"
    used = {k: v for k, v in {**WEIGHTS, **weights}.items() if k in text}
    return fuse_model(model(text, inputs, outputs, used, dtype))


def merged_weight(outcome):
    (name,) = [node.input[1] for node in outcome.after.graph.node if node.op_type == "MatMul"]
    (found,) = [t for t in outcome.after.graph.initializer if t.name == name]
    return found


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("layers", LAYERS)
def test_every_spelling_merges(layers, dtype):
    outcome = gated(LAYERS[layers], dtype=dtype)
    assert outcome.counts == {"GatedAct": 1, "gate_up_merge": 1}
    assert outcome.ops == ["MatMul", *["Add"] * (layers != "plain"), "GatedAct"]
    outcome.same(*SIZES)


def test_gelu_units_merge_too():
    outcome = gated(LAYERS["biased"], GELU["half of x first"])
    assert outcome.counts == {"GatedAct": 1, "gate_up_merge": 1}
    outcome.same(*SIZES)


def test_the_merged_weight_is_the_two_side_by_side():
    outcome = gated(LAYERS["plain"])
    before = {t.name: t for t in outcome.before.graph.initializer}
    want = np.concatenate([to_array(before["wg"]), to_array(before["wu"])], axis=1)
    np.testing.assert_array_equal(to_array(merged_weight(outcome)), want)


def test_no_second_copy_of_a_weight_stays():
    names = {t.name for t in gated(LAYERS["plain"]).after.graph.initializer}
    assert names.isdisjoint(WEIGHTS)


REFUSED = {
    "two inputs": (
        LAYERS["plain"].replace("MatMul(x, wu)", "MatMul(other, wu)"),
        "y",
        "gate and up are not linear layers of one tensor",
    ),
    "weight read elsewhere": (
        LAYERS["plain"] + "z = MatMul(other, wu)\n",
        "z",
        "weight wu is also read by z (MatMul)",
    ),
    "gate read elsewhere": (
        LAYERS["plain"] + "z = Neg(gate)\n",
        "z",
        "gate inside it is also read by z (Neg)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    layers, _, reason = REFUSED[case]
    outcome = gated(layers, outputs="T y, T z" if "z =" in layers else "T y")
    assert outcome.counts == {"GatedAct": 1}
    said = [(m.kind, m.reason) for m in outcome.fused.misses]
    assert ("gate_up_merge", reason) in said
    outcome.same(*SIZES)


def test_one_layer_for_gate_and_up_is_not_doubled():
    text = "gate = MatMul(x, wg)\n" + spell(SILU["mul"], "gate", "a") + "y = Mul(a, gate)\n"
    outcome = fuse_model(model(text, "T[S, 5] x", weights={"wg": (5, 7)}))
    assert "gate_up_merge" not in outcome.counts
    outcome.same(*SIZES)


def test_a_computed_weight_stays():
    text = (
        LAYERS["plain"].replace("wu", "made") + spell(SILU["mul"], "gate", "a") + "y = Mul(a, up)"
    )
    outcome = fuse_model(model(text, "T[S, 5] x, T[5, 7] made", weights={"wg": (5, 7)}))
    assert outcome.counts == {"GatedAct": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("order", ["gate, up", "up, gate"])
def test_what_is_packed_already_is_no_candidate(order):
    text = f"""
        both = MatMul(x, w)
        {order} = Split<axis=-1>(both, [4, 4])
        s = Sigmoid(gate)
        a = Mul(gate, s)
        y = Mul(a, up)
    """
    outcome = fuse_model(model(text, "T[S, 5] x", "T y", {"w": (5, 8)}))
    assert outcome.counts == {"GatedAct": 1}
    assert outcome.fused.misses == ()
    outcome.same({"S": 3})
