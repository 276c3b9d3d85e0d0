"""Copies of key/value heads, as exporters write them for grouped-query attention."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Work


def unrepeat(work: Work, tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]]:
    """Return the [batch, kv_heads, keys, size] tensor behind its copies, and the copying nodes.

    Head h of the result serves heads h * group to (h + 1) * group of ``tensor``. A tensor that is
    not a copy is returned as it is.
    """
    reshape = producer(tensor)
    expand = _producer_of(reshape, "Reshape")
    unsqueeze = _producer_of(expand, "Expand")
    source = _source(unsqueeze)
    if reshape is None or expand is None or unsqueeze is None or source is None:
        return tensor, []
    shapes = [work.shape(t) for t in (source, expand.outputs[0], tensor)]
    if not _is_copy(*shapes):
        return tensor, []
    return source, [reshape, expand, unsqueeze]


def _producer_of(node: gs.Node | None, op: str) -> gs.Node | None:
    return producer(node.inputs[0]) if node is not None and node.op == op else None


def _source(unsqueeze: gs.Node | None) -> gs.Tensor | None:
    if unsqueeze is None or unsqueeze.op not in ("Unsqueeze", "Reshape"):
        return None
    return unsqueeze.inputs[0]


def _is_copy(
    source: tuple[Dim, ...] | None, wide: tuple[Dim, ...] | None, flat: tuple[Dim, ...] | None
) -> bool:
    """Tell whether [b, h, n, d] became [b, h, group, n, d] and then [b, h * group, n, d]."""
    if source is None or wide is None or flat is None:
        return False
    if len(source) != 4 or len(wide) != 5 or len(flat) != 4:
        return False
    batch, heads, keys, size = source
    group = wide[2]
    return wide == (batch, heads, group, keys, size) and flat == (batch, heads * group, keys, size)
