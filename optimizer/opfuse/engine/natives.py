"""Plugin nodes of a lowered model as TensorRT's own layers instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto, NodeProto

from opfuse.engine.tensors import Typed
from opfuse.graph.native import Facts, Unable, native, prepare_attention
from opfuse.graph.protos import opset_of


def substitute(
    model: ModelProto, places: Collection[int], types: Mapping[str, Typed]
) -> dict[str, str]:
    """Put standard operators in the place of plugin nodes, where there are some for them.

    Args:
        model: From stages/lower; changed in place.
        places: The nodes, by their place in the graph.
        types: Of its tensors.

    Returns:
        The nodes that stay what they were, by name, with the reason.
    """
    opset = opset_of(model, 1)
    facts = Facts(model, opset, {name: typed.element for name, typed in types.items()})
    stayed: dict[str, str] = {}
    made: list[NodeProto] = []
    for index, node in enumerate(model.graph.node):
        instead = [node]
        if index in places:
            try:
                instead = native(node, facts)
            except Unable as reason:
                stayed[node.name] = str(reason)
        made += instead
    kept = [NodeProto.FromString(node.SerializeToString()) for node in made]
    for node in kept:
        if node.op_type == "Attention":
            prepare_attention(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return stayed
