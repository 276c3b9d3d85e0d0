"""Linear layers without an activation as GemmAct: for a library that has it, and only then."""

from __future__ import annotations

import onnx
import pytest

from opfuse.engine.plugin_nodes import PLAIN_PRODUCT, leave
from opfuse.engine.tensors import types_of
from opfuse.stages.lower import lower
from tests.small import fuse_model, model, session

INPUT = "T[B, 5, 6] x"
LIBRARY = ("GemmAct",)
LAYERS = "a = MatMul(x, w)\ns = Add(a, b)\ny = MatMul(s, v)"
WEIGHTS = {"w": (6, 8), "b": (8,), "v": (8, 4)}
SIZES = ({"B": 2}, {"B": 1})


def made(text=LAYERS, dtype="float16", library=LIBRARY, inputs=INPUT, outputs="T y", **weights):
    return fuse_model(model(text, inputs, outputs, weights or WEIGHTS, dtype), library=library)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_become_gemm_act(dtype):
    outcome = made(dtype=dtype)
    assert outcome.ops == ["GemmAct", "GemmAct"]
    assert [len(node.input) for node in outcome.after.graph.node] == [3, 3]  # one definition
    if dtype == "float16":
        outcome.same(*SIZES)


def test_beside_an_activation_there_is_one_definition():
    text = "a = MatMul(x, w)\ns = Add(a, b)\nr = Relu(s)\ny = MatMul(r, v)"
    outcome = made(text)
    assert outcome.ops == ["GemmAct", "GemmAct"]
    assert outcome.counts == {"GemmAct": 1}  # what the model is made of
    outcome.same(*SIZES)


@pytest.mark.parametrize(("dtype", "library"), [("float", LIBRARY), ("float16", ())])
def test_others_stay(dtype, library):
    assert made(dtype=dtype, library=library).ops == ["MatMul", "Add", "MatMul"]


def test_a_product_that_is_read_beside_its_bias_keeps_both():
    outcome = made("a = MatMul(x, w)\ns = Add(a, b)\ny = Mul(s, a)", w=(6, 8), b=(8,))
    assert outcome.ops == ["GemmAct", "Add", "Mul"]
    outcome.same(*SIZES)


def test_what_is_no_layer_stays():
    outcome = made("y = MatMul(x, z)", inputs=INPUT + ", T[B, 6, 4] z", w=(1,))
    assert outcome.ops == ["MatMul"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_is_left_is_a_product_and_a_sum(bias):
    text = LAYERS if bias else "y = MatMul(x, w)"
    outcome = made(text, **(WEIGHTS if bias else {"w": (6, 8)}))
    lowered = onnx.ModelProto.FromString(outcome.after.SerializeToString())
    lower(lowered, "plugin", LIBRARY)
    for node in lowered.graph.node:
        assert leave(lowered, node)
    assert {node.op_type for node in lowered.graph.node} == {PLAIN_PRODUCT}
    (body,) = [item for item in lowered.functions if item.name == PLAIN_PRODUCT]
    assert [node.op_type for node in body.node] == ["MatMul", "Add"][: 1 + bias]
    assert types_of(lowered)["y"].shape[1:] == (5, 4 if bias else 8)
    session(lowered)
