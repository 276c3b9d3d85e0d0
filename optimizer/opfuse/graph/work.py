"""A graph while fusions are applied to it: what stands, what was replaced, and what was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from opfuse.graph import advice, edit
from opfuse.graph.definition import Define
from opfuse.graph.dims import Dim, never_equal
from opfuse.graph.draft import Context, Draft, signature_of
from opfuse.graph.facts import Facts
from opfuse.graph.match import Match, NearMiss
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.weights import ConcatValues, gs_dtype

# Recomputing these costs little, so a fused node may leave them to the others that read them.
CHEAP = frozenset(
    (
        *("Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Tile"),
        *("Slice", "Split", "Neg", "Concat", "Where", "IsNaN"),
    )
)


class Miss(Exception):
    """The structure is right but a guard is not; ``node`` blocks, ``hint`` is what to do."""

    def __init__(self, reason: str, node: gs.Node | None = None, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node
        self.advice = hint or advice.of_reason(reason)


class Decline(Exception):
    """Not a candidate after all: nothing that a reader of the report would look for."""


@dataclass(frozen=True)
class NewNode:
    """A node to be made. An output that the graph already has is taken over with its readers."""

    op: str
    inputs: tuple[gs.Tensor, ...]
    outputs: tuple[gs.Tensor, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    domain: str = OPFUSE


@dataclass
class Work:
    """A graph while fusions are applied to it, and what has come of them so far."""

    graph: gs.Graph
    facts: Facts
    base_dir: Path
    define: Define
    vetoes: Mapping[str, str] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    misses: list[NearMiss] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dead: set[int] = set()
        self._names = edit.names(self.graph)
        self._node_names = {node.name for node in self.graph.nodes}
        self._captured = edit.captured(self.graph)
        self._outputs = {id(tensor) for tensor in self.graph.outputs}
        self._first: dict[str, Match] = {}
        self._joined: dict[tuple[int, ...], gs.Constant] = {}
        self._context = Context(self.facts, self.opset, self.define)
        self._made = {n.op: n.attrs for n in self.graph.nodes if n.domain == OPFUSE}

    @property
    def opset(self) -> int:
        """The version of the default ONNX domain."""
        return int(self.graph.opset)

    def nodes(self, types: Iterable[str], domain: str = "") -> list[gs.Node]:
        """Return the living nodes of these types in graph order."""
        wanted = frozenset(types)
        return [
            node
            for node in self.graph.nodes
            if node.op in wanted and (node.domain or "") == domain and id(node) not in self._dead
        ]

    def alive(self, node: gs.Node) -> bool:
        """Tell whether ``node`` still stands in the graph."""
        return id(node) not in self._dead

    def shape(self, tensor: gs.Tensor) -> tuple[Dim, ...] | None:
        """Return the shape of ``tensor``, with symbolic dimensions, or None."""
        return self.facts.shape(tensor)

    def dtype(self, tensor: gs.Tensor) -> int | None:
        """Return the ``onnx.TensorProto`` element type of ``tensor``, or None."""
        return self._context.dtype(tensor)

    def fresh(self, like: gs.Tensor, suffix: str, dtype: int | None = None) -> gs.Variable:
        """Return a new tensor named after ``like``, of its dtype unless another is given."""
        name = base = f"{like.name}/{suffix}"
        count = 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        kind = dtype if dtype is not None else self.dtype(like)
        tensor = gs.Variable(name, None if kind is None else gs_dtype(kind))
        self.facts.lineage.derive(tensor, like)
        return tensor

    def constant(self, like: gs.Tensor, suffix: str, values: object) -> gs.Constant:
        """Return a new constant named after ``like``."""
        return gs.Constant(self.fresh(like, suffix, onnx.TensorProto.FLOAT).name, values)

    def joined(self, parts: Sequence[gs.Constant], like: gs.Tensor, axis: int) -> gs.Constant:
        """Return the constant that holds ``parts`` side by side; the same for the same parts."""
        key = (*map(id, parts), axis)
        if key not in self._joined:
            values = ConcatValues(tuple(parts), axis, self.base_dir)
            self._joined[key] = self.constant(like, "weight" if axis else "bias", values)
        return self._joined[key]

    def claim(self, op: str, attribute: str, value: str, node: gs.Node) -> None:
        """Make sure that ``value`` is what ``attribute`` has on every ``op`` of this model so far.

        Raises:
            Miss: It is another: one op has one definition in a model, and this attribute decides
                what it is.
        """
        taken = str(self._made.get(op, {}).get(attribute, value))
        if taken != value:
            reason = f"{op} stands for {attribute}={taken} in this model already"
            raise Miss(reason, node)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` leaves the graph or is read by a subgraph."""
        return id(tensor) in self._outputs or id(tensor) in self._captured

    def replace(
        self,
        kind: str,
        anchor: gs.Node,
        nodes: Sequence[gs.Node],
        new: Sequence[NewNode],
        shared: Sequence[gs.Node] = (),
    ) -> None:
        """Put ``new`` in the place of ``nodes``, of which others may go on reading ``shared``.

        Raises:
            Miss: A result inside ``nodes`` is needed elsewhere, or a proof has refuted this.
        """
        made = {id(tensor) for spec in new for tensor in spec.outputs}
        nodes = _sorted(nodes)
        read = {id(tensor) for spec in new for tensor in spec.inputs} - made
        self._refuse_escapes(nodes, made, read, {id(node) for node in shared})
        self._refuse_other_shapes(new, anchor)
        before = Draft.of(nodes, made, self._context)
        after = Draft.of(new, {id(tensor) for tensor in before.outputs}, self._context)
        signature = signature_of(kind, before, after)
        if signature in self.vetoes:
            raise Miss(self.vetoes[signature], anchor, "report it with the model")
        name = self._node_name(f"{anchor.name or anchor.outputs[0].name}/{kind}")
        self._remember(kind, name, anchor, signature, before, after)
        for node in nodes:
            for tensor in list(node.outputs):
                if id(tensor) in made:
                    edit.release_output(node, tensor)
        for number, spec in enumerate(reversed(new)):
            self._insert(spec, name if number == 0 else self._node_name(f"{name}.{number}"))
        self._bury(nodes)

    def _node_name(self, base: str) -> str:
        name, count = base, 1
        while name in self._node_names:
            name, count = f"{base}_{count}", count + 1
        self._node_names.add(name)
        return name

    def _insert(self, spec: NewNode, name: str) -> None:
        attrs = dict(spec.attrs)
        if spec.domain == OPFUSE:
            attrs["plugin_namespace"] = OPFUSE
            self._made[spec.op] = attrs
        node = gs.Node(spec.op, name, attrs, list(spec.inputs), list(spec.outputs), spec.domain)
        self.graph.nodes.append(node)

    def _bury(self, nodes: Sequence[gs.Node]) -> None:
        for node in reversed(nodes):
            if not any(t.outputs or self.is_output(t) for t in node.outputs):
                edit.detach(node)
                self._dead.add(id(node))

    def _refuse_other_shapes(self, new: Sequence[NewNode], anchor: gs.Node) -> None:
        """Refuse new nodes that would give an existing tensor another shape.

        A scalar constant of rank 3, say, widens what it is multiplied with.
        """
        standing = {id(t) for spec in new for t in spec.outputs if edit.producer(t) is not None}
        for spec in new:
            for tensor, fact in zip(spec.outputs, self.facts.results(spec), strict=False):
                if id(tensor) not in standing:
                    self.facts.remember(tensor, fact)
                elif not _may_be(self.shape(tensor), fact.shape):
                    have = ", ".join(map(str, self.shape(tensor) or ()))
                    raise Miss(f"{tensor.name} is ({have}), which {spec.op} does not give", anchor)

    def _refuse_escapes(
        self, nodes: Sequence[gs.Node], made: set[int], read: set[int], shared: set[int]
    ) -> None:
        """Refuse what others need of ``nodes``, unless cheap nodes alone give it to them."""
        inside = {id(node) for node in nodes}
        cheap: set[int] = set()
        for node in nodes:
            sources = [edit.producer(tensor) for tensor in node.inputs]
            mine = {id(source) for source in sources} & inside
            if node.op in CHEAP and mine <= cheap:
                cheap.add(id(node))
                continue
            for tensor in node.outputs:
                if id(tensor) in read:
                    raise Miss(f"{tensor.name} inside it is also one of its operands", node)
                if id(tensor) not in made and id(node) not in shared:
                    self._refuse_escape(tensor, node, inside)

    def _refuse_escape(self, tensor: gs.Tensor, node: gs.Node, inside: set[int]) -> None:
        if self.is_output(tensor):
            raise Miss(f"{tensor.name} inside it leaves the graph", node)
        for user in tensor.outputs:
            if id(user) not in inside and id(user) not in self._dead:
                reason = f"{tensor.name} inside it is also read by {label(user)}"
                raise Miss(reason, user)

    def _remember(
        self, kind: str, name: str, anchor: gs.Node, signature: str, before: Draft, after: Draft
    ) -> None:
        first = self._first.get(signature)
        at = anchor.name or anchor.outputs[0].name
        sides = (first.before, first.after) if first else (before.freeze(), after.freeze())
        reads = tuple(tensor.name for tensor in before.inputs)
        writes = tuple(tensor.name for tensor in before.outputs)
        match = Match(kind, name, at, *sides, signature, reads, writes)
        self._first.setdefault(signature, match)
        self.matches.append(match)

    def miss(self, kind: str, anchor: gs.Node, miss: Miss, fitting: Iterable[gs.Node] = ()) -> None:
        """Note a candidate that was left alone, and the nodes of it that did fit."""
        at = anchor.name or anchor.outputs[0].name
        blocker = miss.node or anchor
        where, *parts = (n.outputs[0].name for n in (blocker, anchor, *fitting) if n.outputs)
        said = miss.reason, miss.advice
        self.misses.append(NearMiss(kind, at, label(blocker), *said, where, tuple(parts)))

    def finish(self) -> gs.Graph:
        """Drop the dead nodes, sort the living, and return the graph."""
        self.graph.nodes[:] = [n for n in self.graph.nodes if id(n) not in self._dead]
        edit.sweep(self.graph)
        edit.sort(self.graph)
        return self.graph


def _may_be(have: tuple[Dim, ...] | None, given: tuple[Dim, ...] | None) -> bool:
    if have is None or given is None:
        return True
    return len(have) == len(given) and not any(map(never_equal, have, given))


def label(node: gs.Node) -> str:
    """Return how messages call ``node``."""
    return f"{node.name or node.outputs[0].name} ({node.op})"


def _sorted(nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """Order ``nodes`` so that each stands behind its producers among them."""
    own = {id(node): node for node in nodes}
    ordered: dict[int, gs.Node] = {}

    def visit(node: gs.Node) -> None:
        if id(node) in ordered:
            return
        for tensor in node.inputs:
            source = edit.producer(tensor)
            if source is not None and id(source) in own:
                visit(source)
        ordered[id(node)] = node

    for node in own.values():
        visit(node)
    return list(ordered.values())
