"""Cuts a graph to one rank's part of it: one graph for all ranks, with constants of each rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.collectives import ALL_REDUCE
from opfuse.graph.facts import Facts
from opfuse.graph.pattern import OPFUSE
from opfuse.sharding.layout import Shard, static
from opfuse.sharding.rules import Local
from opfuse.sharding.spread import Spread, reads_sizes
from opfuse.sharding.sums import join
from opfuse.sharding.taken import take


@dataclass
class Cutter:
    """A graph on its way to a rank's part.

    Attributes:
        graph: It is changed.
        facts: What is known of it as it was.
        ranks: How many ranks there are.
        base_dir: The folder that external weights are relative to.
    """

    graph: gs.Graph
    facts: Facts
    ranks: int
    base_dir: Path
    _ranked: list[tuple[gs.Constant, Callable[[int], gs.Constant]]] = field(default_factory=list)
    _made: dict[object, gs.Tensor] = field(default_factory=dict)
    _nodes: list[gs.Node] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._names = edit.names(self.graph)

    def set_rank(self, rank: int) -> None:
        """Give every constant the values that it has on ``rank``."""
        for constant, value in self._ranked:
            constant._values = value(rank)._values

    def apply(self, spread: Spread, rows: frozenset[int]) -> None:
        """Let every node of ``spread`` work on parts, and sum what ``rows`` make."""
        for node in list(self.graph.nodes):
            if reads_sizes(node):
                self._keep_sizes(node, spread)
            how = spread.nodes.get(id(node))
            if how is not None:
                self._localise(node, how, spread)
                if id(node) in rows:
                    self.reduce(node)
        for tensor in self._tensors():
            shard = spread.tensors.get(id(tensor))
            if shard is not None and tensor.shape is not None:
                shape = list(tensor.shape)
                shape[shard.axis] = shard.local
                tensor.shape = shape

    def finish(self) -> None:
        """Put the new nodes where they belong."""
        self.graph.nodes.extend(self._nodes)
        self._nodes.clear()
        edit.sweep(self.graph)
        edit.sort(self.graph)
        join(self.graph, self.facts)
        self.set_rank(0)

    def _tensors(self) -> list[gs.Tensor]:
        made = [tensor for node in self.graph.nodes for tensor in node.outputs]
        return [*self.graph.inputs, *made]

    def _localise(self, node: gs.Node, how: Local, spread: Spread) -> None:
        for index, shard in enumerate(how.inputs):
            tensor = node.inputs[index]
            if shard is not None and id(tensor) not in spread.tensors:
                edit.set_input(node, index, self.part(tensor, shard))
        for index, values in how.sizes.items():
            count = self._length(node, index)
            edit.set_input(node, index, self.with_sizes(node.inputs[index], values, count))
        node.attrs.update(how.attrs)

    def _length(self, node: gs.Node, index: int) -> int:
        if node.op == "Split":
            return len(node.outputs)
        shape = self.facts.shape(node.inputs[index])
        if shape is not None and isinstance(shape[0], int):
            return shape[0]
        return len(self.facts.shape(node.outputs[0]) or ())

    def _keep_sizes(self, node: gs.Node, spread: Spread) -> None:
        """Who asks for the sizes of a tensor gets those of the whole: all of them are computed so.

        Where a node needs the rank's, it is given them (:meth:`with_sizes`).
        """
        shard = spread.tensors.get(id(node.inputs[0]))
        shape = self.facts.shape(node.inputs[0])
        if shard is None or shape is None:
            return
        start, stop, _ = slice(node.attrs.get("start", 0), node.attrs.get("end")).indices(
            len(shape)
        )
        if not start <= shard.axis < stop:
            return
        result = node.outputs[0]
        own = self.released(node, result)
        size = static(shape[shard.axis], "an axis that is split")
        whole = self.with_sizes(own, {shard.axis - start: size}, stop - start)
        self.node("Identity", [whole], {}, result)

    # -- what the ranks have of a tensor --------------------------------------------------------

    def part(self, tensor: gs.Tensor, shard: Shard) -> gs.Tensor:
        """The part of ``tensor`` that each rank needs, taken out of the whole."""
        key = (id(tensor), *shard.key())
        if key not in self._made:
            if isinstance(tensor, gs.Constant):
                self._made[key] = self.weight(tensor, shard)
            else:
                self._made[key] = self._slice(tensor, shard)
        return self._made[key]

    def weight(self, constant: gs.Constant, shard: Shard) -> gs.Constant:
        """The constant of each rank's entries of a weight."""
        return self.ranked(
            f"{constant.name}/part",
            lambda rank: take(constant, shard.axis, shard.parts[rank], self.base_dir),
        )

    def ranked(self, name: str, value: Callable[[int], gs.Constant]) -> gs.Constant:
        """A constant that has another value on every rank."""
        constant = gs.Constant(self._fresh(name), value(0)._values)
        self._ranked.append((constant, value))
        return constant

    def numbers(self, name: str, values: Sequence[object]) -> gs.Constant:
        """A constant with the value ``values[rank]`` on each rank."""
        return self.ranked(name, lambda rank: gs.Constant("", np.asarray(values[rank])))

    def constant(self, name: str, value: np.ndarray) -> gs.Constant:
        """A constant that all ranks have."""
        return gs.Constant(self._fresh(name), value)

    def _slice(self, tensor: gs.Tensor, shard: Shard) -> gs.Tensor:
        result = self._like(tensor, "part", shard)
        name = f"{tensor.name}/part"
        if any((np.diff(part) != 1).any() for part in shard.parts):
            indices = self.numbers(f"{name}_indices", list(shard.parts))
            self.node("Gather", [tensor, indices], {"axis": shard.axis}, result)
            return result
        starts = self.numbers(f"{name}_start", [part[:1] for part in shard.parts])
        ends = self.numbers(f"{name}_end", [part[-1:] + 1 for part in shard.parts])
        axes = self.constant(f"{name}_axis", np.array([shard.axis]))
        self.node("Slice", [tensor, starts, ends, axes], {}, result)
        return result

    def with_sizes(self, sizes: gs.Tensor, values: Mapping[int, int], count: int) -> gs.Tensor:
        """``sizes``, int64 of ``count`` entries, with other values at some positions."""
        mask, new = np.zeros(count, bool), np.zeros(count, np.int64)
        for position, value in values.items():
            mask[position], new[position] = True, value
        name = f"{sizes.name}/of_rank"
        if isinstance(sizes, gs.Constant):
            return self.constant(name, np.where(mask, new, sizes.values))
        if mask.all():
            return self.constant(name, new)
        result = self._like(sizes, "of_rank")
        given = self.constant(f"{name}_mask", mask), self.constant(f"{name}_values", new)
        self.node("Where", [*given, sizes], {}, result)
        return result

    # -- collectives ----------------------------------------------------------------------------

    def reduce(self, node: gs.Node) -> None:
        """Sum the result of ``node`` over the ranks."""
        result = node.outputs[0]
        self.sum(self.released(node, result), result)

    def sum(self, part: gs.Tensor, result: gs.Tensor) -> None:
        """Let ``result`` be the sum of all ranks' ``part``."""
        self.collective(ALL_REDUCE, part, result, {"reduce_op": "sum"})

    def released(self, node: gs.Node, result: gs.Tensor) -> gs.Tensor:
        """Let ``node`` write a tensor of the rank's own in place of ``result``."""
        edit.release_output(node, result)
        own = self._like(result, "of_rank")
        node.outputs.append(own)
        return own

    def collective(
        self, op: str, part: gs.Tensor, result: gs.Tensor, attrs: Mapping[str, object]
    ) -> None:
        """Let ``result`` be what ``op`` makes of all ranks' ``part``."""
        everything = {"group_size": self.ranks, **attrs, "plugin_namespace": OPFUSE}
        self.node(op, [part], everything, result).domain = OPFUSE

    def node(
        self, op: str, inputs: list[gs.Tensor], attrs: Mapping[str, object], result: gs.Tensor
    ) -> gs.Node:
        """A new node of the graph, put in its place by :meth:`finish`."""
        node = gs.Node(op, f"{result.name}/{op}", dict(attrs), inputs, [result])
        self._nodes.append(node)
        return node

    def variable(self, name: str) -> gs.Variable:
        """A tensor of which nothing is told."""
        return gs.Variable(self._fresh(name))

    def _like(self, like: gs.Tensor, suffix: str, shard: Shard | None = None) -> gs.Variable:
        shape = None if like.shape is None else list(like.shape)
        if shape is not None and shard is not None:
            shape[shard.axis] = shard.local
        return gs.Variable(self._fresh(f"{like.name}/{suffix}"), like.dtype, shape)

    def _fresh(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
