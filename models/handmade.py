"""Graphs of a few nodes written by hand, valid or broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper


def graph_model(
    nodes: Sequence[NodeProto],
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    initializers: Sequence[TensorProto] = (),
    opset: int = 18,
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
) -> onnx.ModelProto:
    """A model of fp32 vectors of 4."""

    def values(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in names]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), list(initializers))
    imports = [helper.make_opsetid("", opset), *opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: object) -> NodeProto:
    """A node; its inputs and outputs are written as words."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attributes)


def write(path: Path, model: onnx.ModelProto) -> Path:
    """Writes the model and returns its path."""
    path.write_bytes(model.SerializeToString())
    return path
