"""Cuts a lowered model at its plugin nodes into as few TensorRT segments as there have to be.

Every node that is no plugin gets a level: how many plugins have to run before it, one after the
other. The nodes of one level become one segment however little they have to do with each other, so
a chain of n plugins gives at most n + 1 segments. Shape arithmetic is no member of a level: it is
copied into each segment that needs it, because a TensorRT engine cannot take its shapes from a
tensor on the device that another engine wrote.

Attention that is no plugin is worth more than the plugins around it: BERT-base cut at its norms
took 3639 us on an H100, uncut 2169, for TensorRT no longer fused the attention between the cuts.
So where attention stays with TensorRT, so does what would cut it off.

So is another form of a constant, such as the transposed embedding that a head multiplies with: an
engine makes it once, when it is built. As a member of the first level GPT-2's 77 MB were turned in
each run and handed over (2 layers of 512 tokens, H100: 442 us, TensorRT alone 334).

A view that a plugin reads, such as a Reshape, is neither: it is another name for memory. A level
of nodes that only move data, such as the Concat of a cache, needs no TensorRT: the bundle copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from opfuse.engine.network import NAMESPACE
from opfuse.engine.parts import reads
from opfuse.engine.plugin_nodes import is_plugin, leave
from opfuse.errors import EngineError
from opfuse.graph.collectives import is_ours
from opfuse.graph.protos import all_nodes, label
from opfuse.runtime.copies import Move

HEAVY = frozenset(
    (
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "MatMulInteger"),
        *("ConvInteger", "QLinearMatMul", "QLinearConv", "DeformConv", "LSTM", "GRU", "RNN"),
    )
)
_OF_SHAPES = frozenset({"Shape", "Size"})
_ON_SHAPES = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Equal", "Less"),
        *("Greater", "Not", "And", "Or", "Where", "Cast", "Concat", "Gather", "Slice", "Squeeze"),
        *("Unsqueeze", "Reshape", "Identity", "ReduceProd", "ReduceSum", "ReduceMax"),
        *("ReduceMin", "Constant", "ConstantOfShape"),
    )
)
# What makes of a constant another one that is as large.
_TURNS = frozenset({"Transpose", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_OF_SHAPE_TYPE = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})
_FIRST = -1  # the phase before the first segment

SPLIT = (
    "attention beside it stays with TensorRT, which fuses it in an uncut network only; "
    "--lower plugin cuts all the same"
)


@dataclass(frozen=True)
class Segment:
    """Nodes for one TensorRT engine, by their place in the graph; copied shape nodes included."""

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """``name`` is ``source`` in another shape, for the plugins that read it; nothing runs.

    ``target`` is that of a Reshape.
    """

    source: str
    name: str
    target: tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """Nodes that only move data, by their place in the graph, none of which reads another one."""

    nodes: tuple[int, ...]


CutStep = Segment | View | Copy | int


@dataclass(frozen=True)
class Cut:
    """The steps in order: a segment, a view, a copy, or the place of a plugin node.

    ``left`` maps the name of each plugin node that was given back to TensorRT to the reason.
    """

    steps: tuple[CutStep, ...]
    left: Mapping[str, str]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments alone, in order."""
        return tuple(step for step in self.steps if isinstance(step, Segment))


Ranks = Mapping[str, tuple[int, int]]
"""Element type and rank of every tensor of which both are known."""


def cut(
    model: ModelProto,
    ranks: Ranks,
    refuses: Callable[[NodeProto], str],
    *,
    around_attention: bool = True,
    views: Mapping[int, tuple[int, ...]] | None = None,
    copies: Mapping[int, Move] | None = None,
) -> Cut:
    """Find the steps of ``model``, and turn plugin nodes that do not pay into calls of their body.

    Args:
        model: From stages/lower; plugin nodes may be changed in place.
        ranks: From the shape analysis; tensors that are missing are taken for data.
        refuses: Why a plugin cannot run a node; empty where it can.
        around_attention: Whether attention that is no plugin may be cut off from the rest.
        views: The nodes that are views, from engine/views.
        copies: The nodes that the bundle can run as copies, from engine/copies.

    Raises:
        EngineError: The library cannot run a node that speaks to other ranks.
    """
    left: dict[str, str] = {}
    for node in model.graph.node:
        if is_plugin(node) and (reason := refuses(node)):
            if leave(model, node):
                left[node.name] = reason
            elif is_ours(node.domain, node.op_type):
                raise EngineError(f"{label(node)} has to be a plugin here: {reason}")
    while True:
        plan = _Plan(model, ranks, views or {}, copies or {})
        fences = [] if around_attention else [(node, SPLIT) for node in plan.fences_of_attention()]
        undone = {node.name: reason for node, reason in fences if leave(model, node)}
        if not undone:
            return Cut(plan.steps(), left)
        left |= undone


@dataclass
class _Plan:
    """The levels of one model, computed on construction."""

    model: ModelProto
    ranks: Ranks
    views: Mapping[int, tuple[int, ...]]
    copies: Mapping[int, Move]
    producer: dict[str, int] = field(default_factory=dict)
    level: list[int] = field(default_factory=list)
    shaping: set[int] = field(default_factory=set)
    folded: set[int] = field(default_factory=set)
    seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.reads = [reads(node) for node in self.nodes]
        self.plugin = [is_plugin(node) for node in self.nodes]
        self.constants = _constants(graph)
        self.outputs = {item.name for item in graph.output}
        for index, node in enumerate(self.nodes):
            if self._is_shaping(index):
                self.shaping.add(index)
            elif self._is_seen(index):
                self.seen[node.output[0]] = self._whole(node.input[0])
            elif self._is_folded(index):
                self.folded.add(index)
            self.level.append(self._level(index))
            self.producer |= {name: index for name in node.output if name}
        self.kept = set(self.outputs)
        for index, names in enumerate(self.reads):
            if self.plugin[index]:
                self.kept.update(map(self._whole, names))
        attention = {(f.domain, f.name) for f in self.model.functions if _is_attention(f)}
        self.attention = holding(self.model, self.nodes, attention | {("", "Attention")})

    def _level(self, index: int) -> int:
        """The segment of a node, or the segment after which a plugin runs."""
        lowest = _FIRST if self.plugin[index] else 0
        for name in self.reads[index]:
            made_by = self.producer.get(self._whole(name))
            if made_by is not None:
                behind = self.plugin[made_by] and not self.plugin[index]
                lowest = max(lowest, self.level[made_by] + behind)
        return lowest

    def _whole(self, name: str) -> str:
        """The tensor that has the memory of this one."""
        return self.seen.get(name, name)

    def _is_seen(self, index: int) -> bool:
        """Whether a node is another name for memory; the outputs have memory of their own."""
        return index in self.views and self.nodes[index].output[0] not in self.outputs

    def _is_shaping(self, index: int) -> bool:
        """Whether a node computes with sizes alone, and so can be copied for nothing."""
        node = self.nodes[index]
        if node.domain or self.plugin[index]:
            return False
        if node.op_type in _OF_SHAPES:
            return True
        if node.op_type not in _ON_SHAPES or not all(map(self._small_integers, node.output)):
            return False
        return self._reads_only(index, self.shaping)

    def _is_folded(self, index: int) -> bool:
        """Whether a node gives a constant another form, and so can be copied for nothing."""
        node = self.nodes[index]
        return not node.domain and node.op_type in _TURNS and self._reads_only(index, self.folded)

    def _reads_only(self, index: int, makers: Collection[int]) -> bool:
        """Whether a node reads nothing but constants and what ``makers`` write."""
        return all(
            name in self.constants or self.producer.get(name) in makers
            for name in self.reads[index]
        )

    def _is_free(self, index: int | None) -> bool:
        """Whether a node is copied to whoever needs it."""
        return index in self.shaping or index in self.folded

    def _small_integers(self, name: str) -> bool:
        element, rank = self.ranks.get(name, (0, 2))
        return element in _OF_SHAPE_TYPE and rank <= 1

    def _owns(self, index: int) -> bool:
        """Whether a node belongs to its level, rather than to whoever needs it."""
        written = self.nodes[index].output
        if self.plugin[index]:
            return False
        if self._is_free(index):
            return any(name in self.kept for name in written)
        return not self._is_seen(index)

    def steps(self) -> tuple[CutStep, ...]:
        """The segments, views, copies, and plugin nodes in the order in which they run."""
        at_level: dict[int, list[int]] = {}
        for index, level in enumerate(self.level):
            at_level.setdefault(level, []).append(index)
        copied = {level for level, indices in at_level.items() if self._only_moves(indices)}
        drafts = {
            level: self._members(indices)
            for level, indices in at_level.items()
            if level not in copied
        }
        wanted = self.kept.union(*(inputs for _, inputs in drafts.values()))
        for level in copied:
            wanted.update(*(self._needs(i) for i in at_level[level] if self._owns(i)))
        found: list[CutStep] = []
        for level in sorted(at_level):
            nodes, inputs = drafts.get(level, ((), ()))
            if level in copied:
                self._add_copies([i for i in at_level[level] if self._owns(i)], found)
            elif nodes:
                own = [i for i in nodes if self._owns(i) and self.level[i] == level]
                made = [name for i in own for name in self.nodes[i].output if name in wanted]
                found.append(Segment(nodes, inputs, tuple(made)))
            for index in at_level[level]:
                if self.plugin[index]:
                    self._add(index, found)
        return tuple(found)

    def _only_moves(self, indices: Sequence[int]) -> bool:
        """Whether all that a level has for TensorRT can be copied, between plugins."""
        own = [index for index in indices if self._owns(index)]
        return any(self.plugin) and bool(own) and all(map(self._is_copied, own))

    def _is_copied(self, index: int) -> bool:
        """Whether a node can be a copy: what computes with sizes is no data of a step."""
        move = self.copies.get(index)
        if move is None:
            return False
        makers = {self.producer.get(self._whole(name)) for name in move.inputs}
        return not any(map(self._is_free, makers))

    def _add_copies(self, own: Sequence[int], found: list[CutStep]) -> None:
        """As few steps as there can be: one that reads another node's data waits for it."""
        group: list[int] = []
        for index in own:
            made = {name for at in group for name in self.nodes[at].output}
            if not made.isdisjoint(self._needs(index)):
                found.append(Copy(tuple(group)))
                group = []
            found += [view for view in self._views_for(index) if view not in found]
            group.append(index)
        found.append(Copy(tuple(group)))

    def _add(self, index: int, found: list[CutStep]) -> None:
        """A plugin behind what it reads by other names."""
        found += [view for view in self._views_for(index) if view not in found]
        found.append(index)

    def _views_for(self, index: int) -> list[View]:
        """What a plugin reads in another shape than it was written in, sources first."""
        found: list[View] = []
        queue = [name for name in self.reads[index] if name in self.seen]
        for name in queue:  # which grows meanwhile
            made_by = self.producer[name]
            source = self.nodes[made_by].input[0]
            found.insert(0, View(source, name, self.views[made_by]))
            if source in self.seen:
                queue.append(source)
        return list(dict.fromkeys(found))

    def _members(self, indices: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The nodes of a segment with copied shape nodes, and what it reads from outside."""
        queue = [index for index in indices if self._owns(index)]
        members = set(queue)
        inputs: dict[str, None] = {}
        for index in queue:  # which grows meanwhile
            for name in self.reads[index]:
                made_by = self.producer.get(name)
                if made_by in members or name in self.constants:
                    continue
                if made_by is not None and (self._is_free(made_by) or name in self.seen):
                    members.add(made_by)
                    queue.append(made_by)
                else:
                    inputs[name] = None
        return tuple(sorted(members)), tuple(inputs)

    def fences_of_attention(self) -> list[NodeProto]:
        """The plugins around every segment that has attention in it."""
        found: set[int] = set()
        for segment in self.steps():
            if isinstance(segment, Segment) and not self.attention.isdisjoint(segment.nodes):
                for side in self._around(segment):
                    found.update(side)
        return [self.nodes[index] for index in sorted(found)]

    def _around(self, segment: Segment) -> tuple[list[int], list[int]]:
        """The plugins that run right before a segment for it, and those that wait for it."""
        made = set(segment.outputs)
        after = [
            i for i, on in enumerate(self.plugin) if on and not made.isdisjoint(self._needs(i))
        ]
        level = max((self.level[i] for i in segment.nodes), default=0)
        before = [
            i
            for i, on in enumerate(self.plugin)
            if on and self.level[i] == level - 1 and level > 0 and self._feeds(i, segment)
        ]
        return before, after

    def _needs(self, index: int) -> set[str]:
        return set(map(self._whole, self.reads[index]))

    def _feeds(self, index: int, segment: Segment) -> bool:
        return any(name in segment.inputs for name in self.nodes[index].output)


def _constants(graph: GraphProto) -> set[str]:
    return {item.name for item in graph.initializer}


def holding(
    model: ModelProto, nodes: Sequence[NodeProto], calls: Collection[tuple[str, str]]
) -> set[int]:
    """The nodes that are such calls, or have one in a function or a subgraph."""
    found = set(calls)
    while True:
        more = {
            (item.domain, item.name) for item in model.functions if _holds(item.node, found)
        } - found
        if not more:
            return {index for index, node in enumerate(nodes) if _holds([node], found)}
        found |= more


def _is_attention(function: FunctionProto) -> bool:
    """Whether stage lower made this function of a fused op that is attention or its heart."""
    op = function.name.rstrip("_").removesuffix("_body")
    return function.domain == NAMESPACE and op in (
        "FlashAttention",
        "PackedAttention",
        "MaskedSoftmax",
    )


def _holds(nodes: Iterable[NodeProto], calls: Collection[tuple[str, str]]) -> bool:
    return any((node.domain, node.op_type) in calls for node in all_nodes(nodes))
