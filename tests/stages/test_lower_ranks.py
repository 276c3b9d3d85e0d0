"""Lowering what speaks to other ranks: a plugin where the library has it, else DistCollective."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from onnx import helper

from opfuse.fusions.all_reduce_add_norm import DEFINITION
from opfuse.graph.collectives import SPEAKING
from opfuse.graph.definition import Uses
from opfuse.stages.lower import lower
from tests.engine_models import model, value

HIDDEN = ("b", "s", 16)
SUM = {
    "collective_operation": b"all_reduce",
    "reduce_op": b"sum",
    "root": -1,
    "nb_rank": 4,
    "groups": [0, 1, 2, 3],
    "group_size": 4,
}


def made(op: str, inputs=("x",), outputs=("y",), opset: int = 23, **attrs) -> onnx.ModelProto:
    """A model of one node of four ranks."""
    attrs |= {"group_size": 4, "plugin_namespace": "opfuse"}
    node = helper.make_node(op, inputs, outputs, op, domain="opfuse", **attrs)
    functions = []
    if op == "AllReduceAddNorm":
        call = SimpleNamespace(inputs=node.input, attrs=attrs)
        functions.append(DEFINITION.function(Uses(opset, [call])))
    shapes = {"x": HIDDEN, "residual": HIDDEN}
    ports = [value(name, shapes.get(name, (16,))) for name in inputs]
    return model([node], ports, [value(name, HIDDEN) for name in outputs], (), functions, opset)


def spelt(nodes) -> list[str]:
    return [f"{node.op_type}({', '.join(node.input)})" for node in nodes]


def attributes(node) -> dict[str, object]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


@pytest.mark.parametrize("want", ["auto", "plugin"])
@pytest.mark.parametrize("op", ["AllReduce", "AllGather"])
def test_the_librarys_collective_stays_a_plugin(op, want):
    graph = made(op, axis=2)
    (choice,) = lower(graph, want, SPEAKING)
    assert (choice.choice, graph.graph.node[0].op_type) == ("plugin", op)


@pytest.mark.parametrize(
    ("want", "library"),
    [("auto", ()), ("plugin", ("RmsNorm",)), ("native", SPEAKING), ("leave", ())],
)
def test_without_it_a_sum_is_tensorrts_own(want, library):
    """There is nothing to leave: one rank alone has no form of it."""
    graph = made("AllReduce", reduce_op="sum")
    (choice,) = lower(graph, want, library)
    assert choice.choice == "native"
    (node,) = graph.graph.node
    assert (node.op_type, attributes(node)) == ("DistCollective", SUM)


@pytest.mark.parametrize(("opset", "count"), [(17, {}), (18, {"num_outputs": 4})])
def test_a_gather_along_another_axis_than_the_first(opset, count):
    graph = made("AllGather", axis=2, opset=opset)
    lower(graph, "native", ())
    gather, split, join = graph.graph.node
    assert attributes(gather) == SUM | {"collective_operation": b"all_gather", "reduce_op": b"none"}
    assert attributes(split) == {"axis": 0, **count}
    assert attributes(join) == {"axis": 2}
    assert list(join.input) == list(split.output)
    assert len(split.output) == 4


@pytest.mark.parametrize("bias", [(), ("bias",)])
def test_a_norm_behind_the_sum(bias):
    inputs = ("x", "residual", "gamma", *bias)
    graph = made("AllReduceAddNorm", inputs, ("y", "sum"), norm="rms", epsilon=1e-5)
    (choice,) = lower(graph, "native", ())
    assert choice.choice == "native"
    nodes = list(graph.graph.node)
    ops = ["DistCollective", *(["Add"] if bias else []), "Add", "RMSNormalization"]
    assert [node.op_type for node in nodes] == ops
    assert nodes[-2].input[1] == "residual"
    assert list(nodes[-1].input) == ["sum", "gamma"]


def test_a_layer_norm_behind_the_sum():
    inputs = ("x", "residual", "gamma", "beta", "bias")
    graph = made("AllReduceAddNorm", inputs, ("y", "sum"), norm="layer", epsilon=1e-5)
    lower(graph, "native", ())
    ops = [node.op_type for node in graph.graph.node]
    assert ops == ["DistCollective", "Add", "Add", "LayerNormalization"]


def test_a_body_that_is_left_has_tensorrts_sum():
    inputs = ("x", "residual", "gamma")
    graph = made("AllReduceAddNorm", inputs, ("y", "sum"), norm="rms", epsilon=1e-5)
    (choice,) = lower(graph, "leave", SPEAKING)
    assert choice.choice == "leave"
    (node,), (body,) = graph.graph.node, graph.functions
    assert node.op_type == body.name == "AllReduceAddNorm_body"
    assert (body.node[0].op_type, attributes(body.node[0])) == ("DistCollective", SUM)
    assert all(inner.op_type != "AllReduce" for inner in body.node)
