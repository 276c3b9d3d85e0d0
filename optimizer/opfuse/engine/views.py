"""Which nodes of a lowered model give their input another shape and move no byte of it."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper

from opfuse.engine.tensors import Typed
from opfuse.graph.dims import Dim
from opfuse.graph.simplify import reshape_target

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


def views(model: ModelProto, types: Mapping[str, Typed]) -> dict[int, tuple[int, ...]]:
    """The nodes that are views, by their place in the graph, with the target of a Reshape.

    A view whose sizes cannot be written with one that is left over is none: it stays a node.
    """
    found = {}
    for index, node in enumerate(model.graph.node):
        target = _target(node, types)
        if target is not None:
            found[index] = tuple(target)
    return found


def _target(node: NodeProto, types: Mapping[str, Typed]) -> list[int] | None:
    if node.domain or not node.input or len(node.output) != 1:
        return None
    have, want = types.get(node.input[0]), types.get(node.output[0])
    if have is None or want is None or have.element != want.element:
        return None
    if node.op_type == "Transpose":
        if not _keeps_order(node, have.shape):
            return None
    elif node.op_type not in _VIEWS:
        return None
    return reshape_target(have.shape, want.shape)


def _keeps_order(node: NodeProto, shape: tuple[Dim, ...]) -> bool:
    """Whether a Transpose moves axes of size 1 only."""
    perm = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "perm"), None)
    order = list(reversed(range(len(shape)))) if perm is None else list(perm)
    long = [axis for axis in order if shape[axis] != 1]
    return long == sorted(long)
