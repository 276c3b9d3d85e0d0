"""Which part of every tensor each rank needs, asked backwards from the products that sum over it.

A tensor is split where all that read it want the same part of it and what writes it can make a
part. Everything else stays whole on every rank, and who wants a part of it takes it out of the
whole. So a wrong guess costs time and no numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.facts import Facts
from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.rules import EACH, Local, View, local

SIZES = ("Shape",)  # what reads only sizes is given those of the whole


@dataclass
class Spread:
    """What is split.

    Attributes:
        tensors: The parts of the tensors that are split, by the tensor's id.
        nodes: How the nodes that work on parts do so, by the node's id.
        reasons: Why a node that a part was wanted of makes the whole, by its id.
    """

    tensors: dict[int, Shard] = field(default_factory=dict)
    nodes: dict[int, Local] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


class Spreader:
    """Asks for parts in one graph, which is not changed."""

    def __init__(self, graph: gs.Graph, facts: Facts, ranks: int) -> None:
        self.graph = graph
        self.facts = facts
        self.ranks = ranks
        self._outputs = {id(tensor) for tensor in graph.outputs}
        self._captured = edit.captured(graph)
        self._inputs = {id(tensor) for tensor in graph.inputs}
        self._uses: dict[int, int] = defaultdict(int)
        for node in graph.nodes:
            if not reads_sizes(node):
                for tensor in edit.reads(node):
                    self._uses[id(tensor)] += 1

    def view(self, node: gs.Node, *, alone: bool = False) -> View:
        """What a rule is told of a node."""
        return View(node, self.facts, self.ranks, alone=alone)

    def spread(
        self,
        fixed: Mapping[int, Local],
        nodes: Sequence[gs.Node],
        outputs: Mapping[int, Shard],
        *,
        alone: bool = False,
        whole: Collection[int] = (),
    ) -> Spread:
        """Ask backwards through ``nodes``, which are sorted.

        Args:
            fixed: How the nodes work that parts are wanted for, by id.
            nodes: All nodes, or those up to the last in ``fixed``.
            outputs: Parts of graph outputs that are wanted.
            alone: Ask as if nothing else read what is wanted.
            whole: Nodes that may only make the whole.
        """
        found = Spread()
        wanted: dict[int, list[Shard]] = defaultdict(list)
        for key, shard in outputs.items():
            wanted[key].append(shard)
        for node in reversed(nodes):
            how = fixed.get(id(node))
            if how is None:
                how = self._ask(node, wanted, found, alone, whole)
            if how is None:
                continue
            how = replace(how, inputs=tuple(map(self._needed, node.inputs, how.inputs)))
            found.nodes[id(node)] = how
            for tensor, part in zip(node.inputs, how.inputs, strict=True):
                if part is not None:
                    wanted[id(tensor)].append(part)
        for tensor in self.graph.inputs:
            part = self._agreed(tensor, wanted, alone)
            if part is not None and _is_cache(tensor, part, found):
                found.tensors[id(tensor)] = part
        return found

    def _ask(
        self,
        node: gs.Node,
        wanted: Mapping[int, list[Shard]],
        found: Spread,
        alone: bool,
        whole: Collection[int],
    ) -> Local | None:
        """How a node makes what is wanted of it; None where it makes the whole."""
        if not any(wanted.get(id(tensor)) for tensor in node.outputs):
            return None
        if id(node) in whole:
            found.reasons[id(node)] = "it is the sum over the ranks"
            return None
        shards = [self._agreed(tensor, wanted, alone) for tensor in node.outputs]
        used = [self._uses[id(t)] or id(t) in self._outputs for t in node.outputs]
        some = any(shard is not None for shard in shards)
        if not some or (
            node.op not in EACH
            and any(u and shard is None for u, shard in zip(used, shards, strict=True))
        ):
            found.reasons[id(node)] = "what it makes is also needed whole, or in other parts"
            return None
        try:
            how = local(self.view(node, alone=alone), shards)
        except Stays as stays:
            found.reasons[id(node)] = str(stays)
            return None
        for tensor, shard in zip(node.outputs, shards, strict=True):
            if shard is not None:
                found.tensors[id(tensor)] = shard
        return how

    def _needed(self, tensor: gs.Tensor, part: Shard | None) -> Shard | None:
        """The part, or None where it is the whole: the one key/value head of all queries."""
        shape = self.facts.shape(tensor)
        whole = part is None or (shape is not None and part.complete(shape[part.axis]))
        return None if whole else part

    def _agreed(
        self, tensor: gs.Tensor, wanted: Mapping[int, list[Shard]], alone: bool
    ) -> Shard | None:
        """The part that all who read ``tensor`` want, if there is one."""
        parts = wanted.get(id(tensor), [])
        if not parts or not all(part.same(parts[0]) for part in parts):
            return None
        shape = self.facts.shape(tensor)
        if shape is None or not isinstance(shape[parts[0].axis], int):
            return None
        if alone:
            return parts[0]
        needed = self._uses[id(tensor)]
        if id(tensor) in self._outputs and not _is_heads(parts[0], len(shape)):
            needed += 1
        return parts[0] if len(parts) == needed and id(tensor) not in self._captured else None


def reads_sizes(node: gs.Node) -> bool:
    """Whether a node asks only for the size of what it reads."""
    return node.op in SIZES and edit.is_standard(node)


def _is_heads(shard: Shard, rank: int) -> bool:
    """Whether an output may stay split: it is a key/value cache, [batch, heads, ...]."""
    return rank >= 4 and 0 < shard.axis < rank - 1


def _is_cache(tensor: gs.Tensor, shard: Shard, found: Spread) -> bool:
    """Whether an input is given in parts: one that new keys or values are joined to.

    Other inputs stay as they are: whoever calls the model should have to know of nothing but its
    cache.
    """
    rank = len(tensor.shape or ())
    readers = [node for node in tensor.outputs if not reads_sizes(node)]
    joined = all(node.op == "Concat" and id(node) in found.nodes for node in readers)
    return joined and _is_heads(shard, rank)
