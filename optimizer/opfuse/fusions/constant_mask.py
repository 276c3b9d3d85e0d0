"""Masks that exporters write down as numbers: nothing masked, or what lies behind each query."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_operands import REACHABLE
from opfuse.graph import weights
from opfuse.graph.edit import maker
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Work

_LARGEST = 1 << 27  # elements that are looked through
_ROWS = 1024  # that are compared at a time
_OPS: dict[str, Callable[..., Any]] = {
    "Where": np.where,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}


def settled(
    work: Work, masks: tuple[gs.Tensor, ...], space: Shape
) -> tuple[tuple[gs.Tensor, ...], int, list[gs.Node]]:
    """Return the mask that is left, whether attention is causal without it, and what computed it.

    The nodes are part of what is replaced: without them the mask could be any, not this one.

    Args:
        work: Where the model's weights lie.
        masks: What is added to the scores, or where they are kept, or nothing.
        space: The shape of the scores, [batch, heads, queries, keys].
    """
    nodes: dict[int, gs.Node] = {}
    values = _values(work, masks[0], nodes) if masks else None
    if values is None:
        return masks, 0, []
    spread = list(nodes.values())
    if values.dtype == bool:  # what is kept
        values = np.where(values, np.float32(0), np.float32(-np.inf))
    if not values.any():
        return (), 0, spread
    # One triangle for all: with as many keys as queries, both corners that it may start in are one.
    sizes = values.shape[-2:]
    square = len(sizes) == 2 and sizes[0] == sizes[1] and sizes == tuple(space[-2:])
    if square and all(map(_is_triangle, values.reshape(-1, *sizes))):
        return (), 1, spread
    return masks, 0, []


def _values(work: Work, tensor: gs.Tensor, nodes: dict[int, gs.Node]) -> np.ndarray | None:
    """Return what a tensor of constants holds, before it is spread; None where it is computed."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(weights.load(tensor, work.base_dir)) if _small(tensor) else None
    node = maker(tensor)
    if node is None or node.op not in (*_OPS, "Expand"):
        return None
    nodes[id(node)] = node
    if node.op == "Expand":
        return _values(work, node.inputs[0], nodes)
    parts = [_values(work, part, nodes) for part in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or prod(np.broadcast_shapes(*(p.shape for p in known))) > _LARGEST:
        return None
    if node.op == "Where" and known[0].all():
        return known[1]
    return np.asarray(_OPS[node.op](*known))


def _small(tensor: gs.Constant) -> bool:
    return bool(prod(tensor.shape) <= _LARGEST)


def _is_triangle(values: np.ndarray) -> bool:
    """Tell whether row i is 0 up to column i, and so low that nothing is seen behind it."""
    columns = np.arange(values.shape[1])
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS].astype(np.float32)
        seen = columns <= np.arange(start, start + len(rows))[:, None]
        if rows[seen].any() or (rows[~seen] > REACHABLE).any():
            return False
    return True
