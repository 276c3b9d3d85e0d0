"""Projections of q, k, and v from one input become one matrix product and a Split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.linear import Linear, linear_of, merge
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

KIND = "qkv_merge"
# From an attention input back to its projections; all of a Concat's inputs are followed: a stream
# of text beside one of an image, or a key/value cache, which no projection is behind.
_CARRIERS = frozenset(
    ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast", "Identity", "Expand", "Slice", "Split")
) | frozenset(("Rope", "RmsNorm", "LayerNormalization", "Tile", "Pad"))

# What is put into a cache: the input that holds it.
_WRITES = {"TensorScatter": 1, "ScatterND": 2, "ScatterElements": 2}


class _QkvMerge:
    """Finds projections by walking back from each attention node, never by name."""

    kind = KIND

    def run(self, work: Work) -> None:
        """Merge what each attention's inputs are projected from."""
        for node in work.nodes(("FlashAttention",), "opfuse"):
            found = [layer for tensor in node.inputs[:3] for layer in _projections(tensor)]
            layers = {id(layer.output): layer for layer in found}
            groups = _groups(layers.values())
            for group in groups:
                try:
                    self._apply(work, node, group)
                except Miss as miss:
                    work.miss(KIND, node, miss, _nodes(group))
            if not groups:
                self._explain(work, node, list(layers.values()))

    def _apply(self, work: Work, anchor: gs.Node, group: list[Linear]) -> None:
        made, out = merge(work, group, group[0].output)
        sizes = work.constant(out, "sizes", np.array([g.columns for g in group], np.int64))
        outputs = tuple(layer.output for layer in group)
        made.append(NewNode("Split", (out, sizes), outputs, {"axis": -1}, ""))
        work.replace(KIND, anchor, [n for layer in group for n in layer.nodes], made)

    def _explain(self, work: Work, node: gs.Node, layers: list[Linear]) -> None:
        if len(layers) > 1:  # one alone is packed already
            reason = "q, k, and v are not projected from one tensor"
            work.miss(KIND, node, Miss(reason, layers[-1].nodes[0]), _nodes(layers))


def _nodes(layers: list[Linear]) -> list[gs.Node]:
    return [node for layer in layers for node in layer.nodes]


def _projections(tensor: gs.Tensor) -> Iterator[Linear]:
    """Yield the linear layers behind an attention input."""
    pending, seen = [tensor], {id(tensor)}
    while pending:
        current = pending.pop()
        layer = linear_of(current)
        if layer is not None:
            yield layer
            continue
        node = producer(current)
        for source in () if node is None else _sources(node):
            if id(source) not in seen:
                seen.add(id(source))
                pending.append(source)


def _sources(node: gs.Node) -> list[gs.Tensor]:
    if node.op in _CARRIERS:
        return [node.inputs[0]]
    if node.op in _WRITES:
        return [node.inputs[_WRITES[node.op]]]
    if node.op == "Concat":
        return list(node.inputs)
    if node.op == "Div" and not isinstance(node.inputs[0], gs.Constant):
        return [node.inputs[0]]  # over its own length, say
    if node.op == "Mul" and not any(isinstance(t, gs.Constant) for t in node.inputs):
        return list(node.inputs)  # times a scale of each head
    if node.op in ("Mul", "Add"):
        carried = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        return carried if len(carried) == 1 else []
    return []


def _groups(layers: Iterable[Linear]) -> list[list[Linear]]:
    """Return those layers that share their input; cross attention has k and v alone."""
    by_input: dict[int, list[Linear]] = {}
    for layer in layers:
        by_input.setdefault(id(layer.x), []).append(layer)
    return [group for group in by_input.values() if len(group) > 1]


FUSION = _QkvMerge()
