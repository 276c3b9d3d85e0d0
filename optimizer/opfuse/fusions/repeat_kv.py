"""Copies of key/value heads, as exporters write them for grouped-query attention."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph.edit import maker
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Work


def unrepeat(work: Work, tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Node]]:
    """Return the [batch, kv_heads, keys, size] tensor behind its copies, and the copying nodes.

    Head h of the result serves heads h * group to (h + 1) * group of ``tensor``. A tensor that is
    not a copy is returned as it is.
    """
    reshape = maker(tensor)
    expand = _producer_of(reshape, ("Reshape",))
    unsqueeze = _producer_of(expand, ("Expand", "Tile"))
    source = _source(unsqueeze)
    if reshape is None or expand is None or unsqueeze is None or source is None:
        return tensor, []
    chain = (source, unsqueeze.outputs[0], expand.outputs[0], tensor)
    shapes = [work.shape(t) for t in chain]
    if not _is_copy(*shapes):
        return tensor, []
    return source, [reshape, expand, unsqueeze]


def _producer_of(node: gs.Node | None, ops: tuple[str, ...]) -> gs.Node | None:
    return maker(node.inputs[0]) if node is not None and node.op in ops else None


def _source(unsqueeze: gs.Node | None) -> gs.Tensor | None:
    if unsqueeze is None or unsqueeze.op not in ("Unsqueeze", "Reshape"):
        return None
    return unsqueeze.inputs[0]


def _is_copy(
    source: Shape | None, single: Shape | None, wide: Shape | None, flat: Shape | None
) -> bool:
    """Tell whether [b, h, n, d] became [b, h, 1, n, d], [b, h, group, n, d], [b, h * group, n, d].

    Where the group stands decides: before the heads, the copies are tiles of all heads.
    """
    if source is None or single is None or wide is None or flat is None:
        return False
    if len(source) != 4 or len(wide) != 5:
        return False
    batch, heads, keys, size = source
    return (
        single == (batch, heads, 1, keys, size)
        and wide == (batch, heads, wide[2], keys, size)
        and flat == (batch, heads * wide[2], keys, size)
    )
