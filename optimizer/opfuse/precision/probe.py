"""The fused model with its bodies written out, asked for the largest magnitude of each tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableSequence, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opfuse.graph.bodies import written_out
from opfuse.graph.pattern import OPFUSE

_PREFIX = "opfuse_range"


def probe(model: ModelProto, names: Collection[str]) -> tuple[ModelProto, list[str]]:
    """Return a model whose outputs are the largest finite magnitudes of fp32 tensors.

    Args:
        model: A fused model; its values may lie in files.
        names: Tensors of the graph, and of bodies: ``node//value``.

    Returns:
        The model, and the tensors that its outputs, scalars, stand for.
    """
    asked = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    asked.functions.extend(f for f in model.functions if f.domain != OPFUSE)
    graph = asked.graph
    graph.name = "probe"
    graph.input.extend(model.graph.input)
    graph.initializer.extend(model.graph.initializer)
    graph.initializer.extend(_numbers())
    found: list[str] = []
    ready = [item.name for item in model.graph.input]
    _ask(graph.node, [name for name in ready if name in names], found)
    for node in written_out(model):
        graph.node.append(node)
        _ask(graph.node, [name for name in node.output if name in names], found)
    graph.output.extend(
        helper.make_tensor_value_info(f"{_PREFIX}_{number}", TensorProto.FLOAT, [])
        for number in range(len(found))
    )
    return asked, found


def _numbers() -> Iterator[TensorProto]:
    for name, value in (
        ("flat", np.array([-1], np.int64)),
        ("none", np.zeros(1, np.float32)),
        ("infinite", np.array(np.inf, np.float32)),
    ):
        yield numpy_helper.from_array(value, f"{_PREFIX}_{name}")


def _ask(nodes: MutableSequence[NodeProto], names: Sequence[str], found: list[str]) -> None:
    """Append what measures ``names``: NaN and infinity are no magnitudes, and none are 0."""
    flat, none, infinite = (f"{_PREFIX}_{name}" for name in ("flat", "none", "infinite"))
    for name in names:
        at = f"{_PREFIX}_{len(found)}"
        row, size, real, some = (f"{at}_{part}" for part in ("row", "size", "real", "some"))
        nodes.extend(
            (
                helper.make_node("Reshape", [name, flat], [row]),
                helper.make_node("Abs", [row], [size]),
                helper.make_node("Less", [size, infinite], [f"{at}_is"]),
                helper.make_node("Where", [f"{at}_is", size, none], [real]),
                helper.make_node("Concat", [real, none], [some], axis=0),
                helper.make_node("ReduceMax", [some], [at], keepdims=0),
            )
        )
        found.append(name)
