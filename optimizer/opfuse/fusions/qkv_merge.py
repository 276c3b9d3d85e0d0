"""Projections of q, k, and v from one input become one matrix product and a Split."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.linear import Linear, linear_of, merge
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

KIND = "qkv_merge"
# From an attention input back to its projection; the index is the input that carries the tensor.
_CARRIERS = {
    "Reshape": 0,
    "Transpose": 0,
    "Unsqueeze": 0,
    "Squeeze": 0,
    "Cast": 0,
    "Identity": 0,
    "Expand": 0,
    "Slice": 0,
    "Split": 0,
    "Rope": 0,
    "RmsNorm": 0,
    "LayerNormalization": 0,
    "Concat": -1,
    "TensorScatter": 1,
}


class _QkvMerge:
    """Finds projections by walking back from each attention node, never by name."""

    kind = KIND

    def run(self, work: Work) -> None:
        """Merge what each attention's inputs are projected from."""
        for node in work.nodes(("FlashAttention",), "opfuse"):
            layers = [_projection(tensor) for tensor in node.inputs[:3]]
            group = _group(layers)
            if len(group) < 2:
                self._explain(work, node, layers)
                continue
            try:
                self._apply(work, node, group)
            except Miss as miss:
                work.miss(KIND, node, miss, _nodes(group))

    def _apply(self, work: Work, anchor: gs.Node, group: list[Linear]) -> None:
        made, out = merge(work, group, group[0].output)
        sizes = work.constant(out, "sizes", np.array([g.columns for g in group], np.int64))
        outputs = tuple(layer.output for layer in group)
        made.append(NewNode("Split", (out, sizes), outputs, {"axis": -1}, ""))
        work.replace(KIND, anchor, [n for layer in group for n in layer.nodes], made)

    def _explain(self, work: Work, node: gs.Node, layers: list[Linear | None]) -> None:
        linear = [layer for layer in layers if layer is not None]
        if len({id(layer.output) for layer in linear}) > 1:  # one alone is packed already
            reason = "q, k, and v are not projected from one tensor"
            blocker = linear[-1].nodes[0]
            work.miss(KIND, node, Miss(reason, blocker), _nodes(linear))


def _nodes(layers: list[Linear]) -> list[gs.Node]:
    return [node for layer in layers for node in layer.nodes]


def _projection(tensor: gs.Tensor | None) -> Linear | None:
    """Return the linear layer behind an attention input; packed ones have it in common."""
    while tensor is not None:
        layer = linear_of(tensor)
        if layer is not None:
            return layer
        node = producer(tensor)
        tensor = None if node is None else _step(node)
    return None


def _step(node: gs.Node) -> gs.Tensor | None:
    if node.op in _CARRIERS:
        return node.inputs[_CARRIERS[node.op]]
    if node.op in ("Mul", "Div", "Add"):
        carried = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        return carried[0] if len(carried) == 1 else None
    return None


def _group(layers: list[Linear | None]) -> list[Linear]:
    """Return those of q, k, v that are distinct layers of one input: all, or k and v."""
    for part in (layers, layers[1:]):
        linear = [layer for layer in part if layer is not None]
        same_input = len({id(layer.x) for layer in linear}) == 1
        distinct = len({id(layer.output) for layer in linear}) == len(part)
        if same_input and distinct:
            return linear
    return []


FUSION = _QkvMerge()
