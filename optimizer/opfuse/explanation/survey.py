"""The user's model beside the fused graph: who stands for whom, and how large tensors are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.explanation.roofline import FREE, Operator
from opfuse.graph.dims import Sym, evaluate
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts
from opfuse.graph.lineage import UserGraph
from opfuse.graph.match import Match


class Survey:
    """Both graphs at given shapes of the inputs."""

    def __init__(
        self,
        graph: gs.Graph,
        user: UserGraph,
        facts: Facts,
        matches: tuple[Match, ...],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.graph, self.user, self.facts = graph, user, facts
        self.unknown: set[str] = set()
        for node in (*user.nodes, *graph.nodes):
            # What an early question found unknown may be known by now.
            if not facts.knows(node) or any(facts.shape(t) is None for t in node.outputs):
                facts.infer(node)
        self._sizes = _symbols(graph, facts, shapes)
        names = {node.name for node in graph.nodes}
        self.matches = [match for match in matches if match.node in names]
        self.regions = [user.between(match.reads, match.writes) for match in self.matches]
        self._maker = {
            name: number
            for number, match in enumerate(self.matches)
            for name in _made_names(match)
            if name in names
        }
        self._made: list[list[gs.Node]] = [[] for _ in self.matches]
        for node in graph.nodes:
            if node.name in self._maker:
                self._made[self._maker[node.name]].append(node)

    def bytes(self, tensor: gs.Tensor) -> int:
        """Return the bytes of ``tensor``; 0 where nothing tells, and for sizes on the host."""
        if self.on_host(tensor):
            return 0
        dtype, count = self.facts.dtype(tensor), self._elements(tensor)
        if count is None or not dtype:
            self.unknown.add(tensor.name)
            return 0
        return max(count, 0) * _item_bytes(dtype)

    def _elements(self, tensor: gs.Tensor) -> int | None:
        shape = self.facts.shape(tensor)
        try:
            return None if shape is None else prod(evaluate(dim, self._sizes) for dim in shape)
        except (KeyError, ZeroDivisionError):
            return None

    def on_host(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` is a result of sizes: no kernel computes it."""
        if isinstance(tensor, gs.Constant):
            return False
        value = self.facts.value(tensor)
        return value is not None and all(isinstance(v, (int, Sym)) for v in value.ravel())

    def drawn(self, node: Operator) -> bool:
        """Tell whether ``node`` computes something from activations."""
        return node.op not in FREE and not all(map(self.on_host, node.outputs))

    def maker(self, node: gs.Node) -> int | None:
        """Return the number of the match that made a node of the fused graph, or None."""
        return self._maker.get(node.name)

    def made(self, number: int) -> list[gs.Node]:
        """Return the nodes that match ``number`` made."""
        return self._made[number]

    def now(self, index: int) -> gs.Node | None:
        """Return the node of the fused graph that computes what the user's node did."""
        for tensor in self.user.nodes[index].outputs:
            node = producer(self.user.present(tensor))
            if node is not None:
                return node
        return None

    def lives(self, index: int) -> bool:
        """Tell whether the user's node still stands, not taken by any match."""
        node = self.now(index)
        return node is not None and node.name not in self._maker

    @cached_property
    def takers(self) -> dict[int, list[int]]:
        """The matches that took each of the user's nodes."""
        found: dict[int, list[int]] = {}
        for number, region in enumerate(self.regions):
            for index in region:
                found.setdefault(index, []).append(number)
        return found

    def kind(self, number: int) -> str:
        """Return what readers call match ``number``: the fused op, and the merge if it is one."""
        match = self.matches[number]
        ops = [node.op for node in self.made(number) if node.domain == "opfuse"]
        return " + ".join(dict.fromkeys((*ops, match.kind)))


def _made_names(match: Match) -> list[str]:
    return [match.node, *(f"{match.node}.{n}" for n in range(1, len(match.after.nodes)))]


def _symbols(
    graph: gs.Graph, facts: Facts, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Return the size of each symbol that is a dimension of an input by itself."""
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        dims = facts.shape(tensor) or ()
        for dim, size in zip(dims, shapes.get(tensor.name, ()), strict=False):
            if isinstance(dim, Sym) and len(dim.symbols()) == 1:
                (name,) = dim.symbols()
                if str(dim) == name:
                    sizes.setdefault(name, size)
    return sizes


def _item_bytes(dtype: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).itemsize)
