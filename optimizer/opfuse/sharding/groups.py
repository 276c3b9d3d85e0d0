"""One token's query heads, laid as the rows of their key/value head, become heads again.

Where there is one query, exporters write grouped-query attention so (torch's lowering of
scaled_dot_product_attention). As rows of one head they could not be told apart by heads, so no more
ranks could share them than there are key/value heads.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts, Shape
from opfuse.graph.pattern import OPFUSE

_MASK = 3


def ungroup(graph: gs.Graph, facts: Facts) -> None:
    """Let every such attention read its queries before, and write them behind, their reshaping.

    Args:
        graph: A sorted graph; it is changed.
        facts: What is known of its tensors, which stay.
    """
    kept = edit.returned(graph)
    for node in graph.nodes:
        if node.op != "FlashAttention" or node.domain != OPFUSE:
            continue
        before, behind = producer(node.inputs[0]), _only_reader(node.outputs[0], kept)
        if before is None or behind is None or not before.op == behind.op == "Reshape":
            continue
        heads = _heads(node, facts.shape(before.inputs[0]), facts)
        if heads and facts.shape(behind.outputs[0]) == facts.shape(before.inputs[0]):
            edit.set_input(node, 0, before.inputs[0])
            _write_instead(node, behind)
            node.attrs["num_heads"] = heads
    edit.sweep(graph)


def _heads(node: gs.Node, queries: Shape | None, facts: Facts) -> int:
    """How many heads ``queries`` [batch, heads, 1, size] are of ``node``; 0 where they are none."""
    rows, few = facts.shape(node.inputs[0]), node.attrs["kv_num_heads"]
    plain = node.attrs["num_heads"] == few and not node.attrs.get("causal")
    if not plain or queries is None or rows is None or len(queries) != 4 or len(rows) != 4:
        return 0
    heads, group = queries[1], rows[2]
    if not isinstance(heads, int) or not isinstance(group, int) or heads != few * group:
        return 0
    same = (rows[0], rows[1], rows[3]) == (queries[0], few, queries[3])
    return heads if same and queries[2] == 1 and _masks_all_alike(node, facts) else 0


def _masks_all_alike(node: gs.Node, facts: Facts) -> bool:
    """Whether the mask, if any, is one row for all heads."""
    if len(node.inputs) <= _MASK:
        return True
    shape = facts.shape(node.inputs[_MASK])
    return shape is not None and all(dim == 1 for dim in shape[-3:-1])


def _only_reader(tensor: gs.Tensor, kept: set[int]) -> gs.Node | None:
    return tensor.outputs[0] if len(tensor.outputs) == 1 and id(tensor) not in kept else None


def _write_instead(node: gs.Node, behind: gs.Node) -> None:
    result, own = behind.outputs[0], node.outputs[0]
    edit.detach(behind)
    edit.release_output(node, own)
    node.outputs.append(result)
