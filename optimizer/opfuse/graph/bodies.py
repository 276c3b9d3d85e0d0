"""Calls of fused ops written out: a value inside has the name ``node//value``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

from opfuse.graph.pattern import OPFUSE

INNER = "//"
"""Between a fused node's name and that of a value inside it."""


def written_out(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes of ``model``'s graph, and in the place of each fused op its body.

    A body may call another one, as that of AllReduceAddNorm does in a proof.
    """
    functions = {f.name: f for f in model.functions if f.domain == OPFUSE}
    for node in model.graph.node:
        yield from _written_out(node, functions)


def _written_out(node: NodeProto, functions: Mapping[str, FunctionProto]) -> Iterator[NodeProto]:
    """Yield ``node``, or the body of the fused op that it calls."""
    function = functions.get(node.op_type) if node.domain == OPFUSE else None
    if function is None:
        yield node
        return
    names = {"": ""}
    names.update(zip(function.input, node.input, strict=False))
    names.update(zip(function.output, node.output, strict=False))
    given = {item.name: item for item in node.attribute}
    for inner in function.node:
        copy = NodeProto.FromString(inner.SerializeToString())
        for field in (copy.input, copy.output):
            actual = [names.setdefault(name, f"{node.name}{INNER}{name}") for name in field]
            del field[:]
            field.extend(actual)
        copy.name = f"{node.name}{INNER}{inner.name or inner.output[0]}"
        attributes = [_actual(item, given) for item in inner.attribute]
        del copy.attribute[:]
        copy.attribute.extend(item for item in attributes if item is not None)
        yield from _written_out(copy, functions)


def _actual(item: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto | None:
    if not item.ref_attr_name:
        return item
    value = given.get(item.ref_attr_name)
    if value is None:
        return None
    copy = AttributeProto()
    copy.CopyFrom(value)
    copy.name = item.name
    return copy
