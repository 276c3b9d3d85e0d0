"""Sizes are read from the graph's inputs, so that no fused tensor is kept only for its shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.facts import Facts
from opfuse.graph.rewriter import Rewriter


def reroot(graph: gs.Graph, facts: Facts) -> bool:
    """Rewrite every Shape of an inner tensor whose sizes are sizes of graph inputs.

    Returns:
        Whether anything was rewritten.
    """
    rewriter = Rewriter(graph, facts)
    inputs = {id(tensor) for tensor in graph.inputs}
    sources = _sources(graph, rewriter)

    def rule(_: Rewriter, node: gs.Node) -> gs.Tensor | None:
        if id(node.inputs[0]) in inputs:
            return None
        value = facts.value(node.outputs[0])
        if value is None or value.ndim != 1 or value.size == 0:
            return None
        dims: list[Dim] = list(value)
        if not all(isinstance(dim, int) or dim in sources for dim in dims):
            return None
        return _vector(rewriter, node.outputs[0], dims, sources)

    rewriter.run({"Shape": (rule,)})
    return rewriter.changed


def _sources(graph: gs.Graph, rewriter: Rewriter) -> dict[Dim, tuple[gs.Tensor, int]]:
    """Return for each symbolic size of an input that input and the axis."""
    found: dict[Dim, tuple[gs.Tensor, int]] = {}
    for tensor in graph.inputs:
        for axis, dim in enumerate(rewriter.shape(tensor) or ()):
            if not isinstance(dim, int):
                found.setdefault(dim, (tensor, axis))
    return found


def _vector(
    rewriter: Rewriter,
    like: gs.Tensor,
    dims: Sequence[Dim],
    sources: dict[Dim, tuple[gs.Tensor, int]],
) -> gs.Tensor:
    parts: list[gs.Tensor] = []
    for dim in dims:
        if isinstance(dim, int):
            parts.append(rewriter.constant(like, np.array([dim], np.int64)))
        else:
            tensor, axis = sources[dim]
            attrs = {"start": axis, "end": axis + 1}
            parts.append(rewriter.emit("Shape", [tensor], attrs, like))
    return parts[0] if len(parts) == 1 else rewriter.emit("Concat", parts, {"axis": 0}, like)
