"""Masks that exporters write down as numbers: nothing masked, or what lies behind each query."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_operands import REACHABLE
from opfuse.graph import weights
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Work

_ROWS = 1024  # that are compared at a time


def settled(
    work: Work, masks: tuple[gs.Tensor, ...], space: Shape
) -> tuple[tuple[gs.Tensor, ...], int]:
    """Return the mask that is left, and whether attention is causal without it.

    Args:
        work: Where the model's weights lie.
        masks: What is added to the scores, or where they are kept, or nothing.
        space: The shape of the scores, [batch, heads, queries, keys].
    """
    if not masks or not isinstance(masks[0], gs.Constant):
        return masks, 0
    sizes = masks[0].shape
    if tuple(sizes[-2:]) != space[-2:] and any(size != 1 for size in sizes[:-1]):
        return masks, 0
    values = np.asarray(weights.load(masks[0], work.base_dir))
    if values.dtype == bool:  # what is kept
        values = np.where(values, np.float32(0), np.float32(-np.inf))
    if not values.any():
        return (), 0
    # One triangle for all: with as many keys as queries, both corners that it may start in are one.
    square = len(sizes) >= 2 and sizes[-1] == sizes[-2] and tuple(sizes[-2:]) == space[-2:]
    if square and values.size == sizes[-1] ** 2 and _is_triangle(values.reshape(sizes[-2:])):
        return (), 1
    return masks, 0


def _is_triangle(values: np.ndarray) -> bool:
    """Tell whether row i is 0 up to column i, and so low that nothing is seen behind it."""
    columns = np.arange(values.shape[1])
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS].astype(np.float32)
        seen = columns <= np.arange(start, start + len(rows))[:, None]
        if rows[seen].any() or (rows[~seen] > REACHABLE).any():
            return False
    return True
