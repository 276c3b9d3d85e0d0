"""The surroundings in which a plugin is weighed against TensorRT, each distinct one once.

A region is a group of plugin nodes with what TensorRT would fuse them with: the small nodes around
them and the matrix products that these come from and lead to. Plugins that only serve another one,
such as the rope of an attention's queries and keys, are of its group. The 32 layers of a model are
a handful of distinct regions. What speaks to other ranks is weighed against nothing.

Where the products around a group are plugins too, they can be made part of its region: a norm by
TensorRT between two of them costs the launch of an engine and the overlap of theirs as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from opfuse.engine.cut import HEAVY, holding
from opfuse.engine.parts import reads
from opfuse.engine.plugin_nodes import is_plugin
from opfuse.engine.tensors import Typed
from opfuse.graph.collectives import is_ours

HEAVY_PLUGINS = frozenset({"GemmAct", "GatedGemm"})
_SPELT_OUT = 8  # elements up to which a constant is part of the computation, not a weight
_WIDEST = 256  # nodes of a region; what is larger is no surrounding any more


@dataclass(frozen=True)
class Region:
    """Nodes of a model, by their place: ``group`` are the plugins that are weighed together.

    ``key`` is the same for all regions that compute the same on the same shapes.
    """

    key: str
    group: tuple[int, ...]
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def regions(
    model: ModelProto, types: Mapping[str, Typed], *, beside_products: bool = False
) -> tuple[Region, ...]:
    """The region of every group of plugins of a lowered model, in the order of the graph.

    Args:
        model: From stages/lower.
        types: Of its tensors.
        beside_products: Whether the products next to a group that are plugins are of its region.
    """
    graph = _Graph(model, types)
    return tuple(graph.region(group, beside_products) for group in graph.groups())


class _Graph:
    """Who writes and who reads what."""

    def __init__(self, model: ModelProto, types: Mapping[str, Typed]) -> None:
        self.nodes = list(model.graph.node)
        self.types = types
        self.weights = {item.name: item for item in model.graph.initializer}
        self.outputs = {item.name for item in model.graph.output}
        self.plugin = [is_plugin(node) for node in self.nodes]
        self.fixed = {i for i, n in enumerate(self.nodes) if is_ours(n.domain, n.op_type)}
        heavy = holding(model, self.nodes, {("", op) for op in HEAVY})
        self.stops = heavy | {i for i, on in enumerate(self.plugin) if on}
        self.reads = [[n for n in reads(node) if n not in self.weights] for node in self.nodes]
        self.made_by = {n: i for i, node in enumerate(self.nodes) for n in node.output if n}
        self.read_by: dict[str, list[int]] = {}
        for index, names in enumerate(self.reads):
            for name in names:
                self.read_by.setdefault(name, []).append(index)

    def groups(self) -> list[tuple[int, ...]]:
        """The plugins that are weighed together, each plugin in one group."""
        joined: dict[int, int] = {}
        for index in reversed(range(len(self.nodes))):  # readers come before what they read
            if self.plugin[index] and index not in self.fixed:
                served = self._serves(index)
                joined[index] = index if served is None else joined[served]
        found: dict[int, list[int]] = {}
        for index in sorted(joined):
            found.setdefault(joined[index], []).append(index)
        return sorted(map(tuple, found.values()))

    def _serves(self, index: int) -> int | None:
        """The one plugin that all of a plugin's results lead to, if there is nothing else."""
        if self._is_heavy_plugin(index):
            return None
        _, ends = self._behind(index)
        if len(ends) == 1:
            (end,) = ends
            if self.plugin[end] and end not in self.fixed and not self._is_heavy_plugin(end):
                return end
        return None

    def _is_heavy_plugin(self, index: int) -> bool:
        return self.plugin[index] and self.nodes[index].op_type in HEAVY_PLUGINS

    def _behind(self, index: int) -> tuple[set[int], set[int]]:
        """The small nodes behind a node, and the products and plugins where these end."""
        small: set[int] = set()
        ends: set[int] = set()
        queue = [index]
        for at in queue:  # which grows meanwhile
            for reader in (r for name in self.nodes[at].output for r in self.read_by.get(name, ())):
                if reader in self.stops:
                    ends.add(reader)
                elif reader not in small:
                    small.add(reader)
                    queue.append(reader)
        return small, ends

    def _before(self, members: set[int]) -> set[int]:
        """What leads to ``members`` alone: small nodes, and the products that these come from."""
        found: set[int] = set()
        queue = sorted(members)
        for at in queue:  # which grows meanwhile
            for name in self.reads[at]:
                maker = self.made_by.get(name)
                if maker is None or maker in members or maker in found or self.plugin[maker]:
                    continue
                found.add(maker)
                if maker not in self.stops:
                    queue.append(maker)
        while True:
            inside = found | members
            shared = {
                i for i in found if i not in self.stops and not self._is_read_by(i, inside)
            } - {i for i in found if self._is_of_sizes(i)}
            if not shared:
                return found
            found -= shared
            found = self._still_needed(found, members)

    def _is_read_by(self, index: int, nodes: set[int]) -> bool:
        names = self.nodes[index].output
        return all(r in nodes for name in names for r in self.read_by.get(name, ()))

    def _is_of_sizes(self, index: int) -> bool:
        """Whether a node computes small integers, which have to be where they are used."""
        known = [self.types.get(name) for name in self.nodes[index].output if name]
        return all(
            t is not None
            and t.element in (TensorProto.INT64, TensorProto.INT32)
            and len(t.shape) < 2
            for t in known
        )

    def _still_needed(self, found: set[int], members: set[int]) -> set[int]:
        kept: set[int] = set()
        queue = sorted(members)
        for at in queue:  # which grows meanwhile
            for name in self.reads[at]:
                maker = self.made_by.get(name)
                if maker in found and maker not in kept:
                    kept.add(maker)
                    if maker not in self.stops:
                        queue.append(maker)
        return kept

    def _products_beside(self, members: set[int]) -> set[int]:
        """The products that are plugins and write what ``members`` read, or read theirs."""
        around = {r for i in members for n in self.nodes[i].output for r in self.read_by.get(n, ())}
        around |= {self.made_by[n] for i in members for n in self.reads[i] if n in self.made_by}
        return {index for index in around - members if self._is_heavy_plugin(index)}

    def region(self, group: tuple[int, ...], beside_products: bool) -> Region:
        """The region of a group."""
        members = set(group)
        for index in group:
            small, ends = self._behind(index)
            members |= small | {end for end in ends if not self.plugin[end]}
        members |= self._before(members if len(members) <= _WIDEST else set(group))
        if beside_products:
            members |= self._products_beside(members)
        nodes = tuple(sorted(members))
        made = {name for i in nodes for name in self.nodes[i].output if name}
        inputs = dict.fromkeys(n for i in nodes for n in self.reads[i] if n not in made)
        outputs = [
            name
            for i in nodes
            for name in self.nodes[i].output
            if name in self.outputs or any(r not in members for r in self.read_by.get(name, ()))
        ]
        if not outputs:  # nothing reads what the model does not return: all of it ends here
            outputs = [name for name in self.nodes[nodes[-1]].output if name]
        key = hashlib.sha256("\n".join(self._text(nodes)).encode()).hexdigest()[:16]
        return Region(key, group, nodes, tuple(inputs), tuple(outputs))

    def _text(self, nodes: Iterable[int]) -> Iterable[str]:
        """The computation without names and without weights."""
        numbers: dict[str, int] = {}
        for index in nodes:
            node = self.nodes[index]
            attributes = sorted(_attribute(item) for item in node.attribute)
            ins = [self._tensor(name, numbers) for name in node.input]
            outs = [self._tensor(name, numbers) for name in node.output]
            yield f"{node.domain}.{node.op_type}{attributes}{ins}{outs}"

    def _tensor(self, name: str, numbers: dict[str, int]) -> str:
        weight = self.weights.get(name)
        if weight is not None and prod(weight.dims) <= _SPELT_OUT and not weight.external_data:
            return f"{weight.data_type}{numpy_helper.to_array(weight).tolist()}"
        known = self.types.get(name)
        shown = "" if known is None else f"{known.element}{[str(dim) for dim in known.shape]}"
        return f"{numbers.setdefault(name, len(numbers))}:{shown}"


def _attribute(item: AttributeProto) -> str:
    return f"{item.name}={helper.get_attribute_value(item)}"
