"""The precision of every node with as few Casts between them as there can be.

Nodes are in one of two parts, low and fp32. A tensor that is written in one and read in the other
costs a Cast, once, however many read it. The cheapest split is a minimum cut; a little more weight
on larger tensors puts the Cast where fewer bytes pass, and the least of all makes what is free to
choose compute in the low type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, prod

import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph import edit
from opfuse.graph.facts import Facts
from opfuse.precision.cut import INFINITE, Network
from opfuse.precision.signature import Signature
from opfuse.precision.verdict import Verdict

_CAST = 10_000
_PER_BIT = 100  # for each doubling of a tensor's size
_ASSUMED = 128  # a size that nobody knows
_LOOSE = 50  # keeps masks, angles, sums, and exponentials in fp32, where that needs no Cast
_FREE = 1


@dataclass(frozen=True)
class Ends:
    """The types that the graph's inputs and outputs will have, by tensor id."""

    inputs: Mapping[int, int]
    outputs: Mapping[int, int]


class Plan:
    """The split; ``low`` are the ids of the nodes in the low type."""

    def __init__(
        self,
        graph: gs.Graph,
        signatures: Mapping[int, Signature],
        verdicts: Mapping[int, Verdict],
        ends: Ends,
        low: int,
        facts: Facts,
    ) -> None:
        """Split ``graph``, whose nodes are in topological order."""
        self._signatures, self._verdicts = signatures, verdicts
        self._ends, self._low, self._facts = ends, low, facts
        self._network = Network()
        self._in_low, self._in_fp32 = self._network.vertex(), self._network.vertex()
        self._vertices = {id(node): self._vertex(node) for node in graph.nodes}
        self._tensors(graph)
        part = self._network.cut(self._in_low, self._in_fp32)
        self.low = frozenset(key for key, vertex in self._vertices.items() if vertex in part)

    def _vertex(self, node: gs.Node) -> int:
        verdict = self._verdicts[id(node)]
        if verdict.low is not None:
            return self._in_low if verdict.low else self._in_fp32
        vertex = self._network.vertex()
        if verdict.wide:
            self._network.edge(vertex, self._in_fp32, _LOOSE)
        else:
            self._network.edge(self._in_low, vertex, _FREE)
        return vertex

    def _of_type(self, element: int) -> int:
        return self._in_low if element == self._low else self._in_fp32

    def _tensors(self, graph: gs.Graph) -> None:
        """Let every tensor cost what a Cast of it costs where its ends are in two parts."""
        readers: dict[int, set[int]] = defaultdict(set)
        loose: set[int] = set()
        for node in graph.nodes:
            signature = self._signatures[id(node)]
            for index, tensor in enumerate(node.inputs):
                if index in signature.main:
                    readers[id(tensor)].add(self._vertices[id(node)])
                elif index in signature.loose:
                    loose.add(id(tensor))
                    if node.op == "Cast" and signature.results[0] in (TensorProto.FLOAT, self._low):
                        readers[id(tensor)].add(self._of_type(signature.results[0]))
                elif signature.types[index] in (TensorProto.FLOAT, self._low):
                    readers[id(tensor)].add(self._of_type(signature.types[index]))
            for tensor in _captured_by(node):
                element = self._facts.dtype(tensor)
                if element in (TensorProto.FLOAT, self._low):
                    readers[id(tensor)].add(self._of_type(element))
        for key, element in self._ends.outputs.items():
            readers[key].add(self._of_type(element))
        for tensor in graph.inputs:
            if id(tensor) in self._ends.inputs:
                writer = self._of_type(self._ends.inputs[id(tensor)])
                self._tensor(tensor, writer, readers[id(tensor)], id(tensor) in loose)
        for node in graph.nodes:
            signature = self._signatures[id(node)]
            for index, tensor in enumerate(node.outputs):
                if index in signature.outputs:
                    writer = self._vertices[id(node)]
                elif signature.results[index] in (TensorProto.FLOAT, self._low):
                    writer = self._of_type(signature.results[index])
                else:
                    continue
                self._tensor(tensor, writer, readers[id(tensor)], id(tensor) in loose)

    def _tensor(self, tensor: gs.Tensor, writer: int, readers: set[int], loose: bool) -> None:
        cost = _CAST + int(_PER_BIT * log2(1 + self._size(tensor)))
        others = readers - {writer}
        if loose:
            self._network.edge(writer, self._in_fp32, _LOOSE)
        if not others:
            return
        up, down = self._network.vertex(), self._network.vertex()
        self._network.edge(writer, up, cost)
        self._network.edge(down, writer, cost)
        for reader in others:
            self._network.edge(up, reader, INFINITE)
            self._network.edge(reader, down, INFINITE)

    def _size(self, tensor: gs.Tensor) -> int:
        shape = self._facts.shape(tensor) or ()
        return prod(dim if isinstance(dim, int) else _ASSUMED for dim in shape)


def _captured_by(node: gs.Node) -> list[gs.Tensor]:
    """The tensors of the graph that the bodies of ``node`` read."""
    if not any(edit.subgraphs(node)):
        return []
    own = {id(tensor) for tensor in node.inputs}
    return [tensor for tensor in edit.reads(node) if id(tensor) not in own]
