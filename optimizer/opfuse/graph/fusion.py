"""What a fusion is, what it sees of the graph, and how one is applied."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from opfuse.graph import edit
from opfuse.graph.definition import Uses
from opfuse.graph.dims import Dim, Sym
from opfuse.graph.match import Match, NearMiss, Subgraph, TensorSpec
from opfuse.graph.pattern import OPFUSE, Bindings, Fit, Matcher, Op, Pattern
from opfuse.graph.shapes import Facts
from opfuse.graph.weights import onnx_dtype

# Recomputing these costs little, so a fused node may leave them to the others that read them.
CHEAP = frozenset(
    ("Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Slice", "Split")
    + ("Neg", "Concat", "Where", "IsNaN")
)


class Miss(Exception):
    """The structure is right but a guard is not; ``node`` is the one that blocks."""

    def __init__(self, reason: str, node: gs.Node | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node


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
    define: Callable[[str, Uses], onnx.FunctionProto]
    vetoes: Mapping[str, str] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    misses: list[NearMiss] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dead: set[int] = set()
        self._names = edit.names(self.graph)
        self._captured = edit.captured(self.graph)
        self._outputs = {id(tensor) for tensor in self.graph.outputs}
        self._first: dict[str, Match] = {}
        self._claims: dict[tuple[str, str], str] = {}

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
        if isinstance(tensor, gs.Constant):
            return onnx_dtype(tensor)
        return self.facts.dtype(tensor)

    def fresh(self, like: gs.Tensor, suffix: str, dtype: int | None = None) -> gs.Variable:
        """Return a new tensor named after ``like``, of its dtype unless another is given."""
        name = base = f"{like.name}/{suffix}"
        count = 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        kind = dtype if dtype is not None else self.dtype(like)
        return gs.Variable(name, None if kind is None else _gs_dtype(kind))

    def constant(self, like: gs.Tensor, suffix: str, values: object) -> gs.Constant:
        """Return a new constant named after ``like``."""
        return gs.Constant(self.fresh(like, suffix, onnx.TensorProto.FLOAT).name, values)

    def claim(self, op: str, attribute: str, value: str, node: gs.Node) -> None:
        """Reserve the one value that ``attribute`` has over all nodes of ``op`` in this model.

        Raises:
            Miss: Another is taken: one op has one definition in a model, and this attribute
                decides what it is.
        """
        taken = self._claims.setdefault((op, attribute), value)
        if taken != value:
            raise Miss(f"{op} stands for {attribute}={taken} in this model already", node)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` leaves the graph or is read by a subgraph."""
        return id(tensor) in self._outputs or id(tensor) in self._captured

    def replace(
        self, kind: str, anchor: gs.Node, nodes: Sequence[gs.Node], new: Sequence[NewNode]
    ) -> None:
        """Put ``new`` in the place of ``nodes``.

        Raises:
            Miss: A result inside ``nodes`` is needed elsewhere, or a proof has refuted this.
        """
        made = {id(tensor) for spec in new for tensor in spec.outputs}
        nodes = _sorted(nodes)
        self._refuse_escapes(nodes, made)
        before = self._subgraph([_record(node) for node in nodes], made)
        after = self._subgraph([_record(spec) for spec in new], made)
        signature = _signature(kind, before, after)
        if signature in self.vetoes:
            raise Miss(self.vetoes[signature], anchor)
        name = f"{anchor.name or anchor.outputs[0].name}/{kind}"
        self._remember(kind, name, anchor, signature, before, after)
        for node in nodes:
            for tensor in list(node.outputs):
                if id(tensor) in made:
                    edit.release_output(node, tensor)
        for number, spec in enumerate(reversed(new)):
            self._insert(spec, name if number == 0 else f"{name}.{number}")
        self._bury(nodes)

    def _insert(self, spec: NewNode, name: str) -> None:
        attrs = dict(spec.attrs)
        if spec.domain == OPFUSE:
            attrs["plugin_namespace"] = OPFUSE
        node = gs.Node(spec.op, name, attrs, list(spec.inputs), list(spec.outputs), spec.domain)
        self.graph.nodes.append(node)

    def _bury(self, nodes: Sequence[gs.Node]) -> None:
        for node in reversed(nodes):
            if not any(t.outputs or self.is_output(t) for t in node.outputs):
                edit.detach(node)
                self._dead.add(id(node))

    def _refuse_escapes(self, nodes: Sequence[gs.Node], made: set[int]) -> None:
        inside = {id(node) for node in nodes}
        for node in nodes:
            if node.op in CHEAP:
                continue
            for tensor in node.outputs:
                if id(tensor) in made:
                    continue
                if self.is_output(tensor):
                    raise Miss(f"{tensor.name} inside it leaves the graph", node)
                for user in tensor.outputs:
                    if id(user) not in inside and id(user) not in self._dead:
                        raise Miss(f"{tensor.name} inside it is also read by {label(user)}", user)

    def _subgraph(self, nodes: list[_Record], made: set[int]) -> _Draft:
        own = {id(tensor) for node in nodes for tensor in node.outputs}
        inputs: dict[int, gs.Tensor] = {}
        constants: dict[int, gs.Constant] = {}
        for node in nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant):
                    constants[id(tensor)] = tensor
                elif id(tensor) not in own and not tensor.is_empty():
                    inputs[id(tensor)] = tensor
        outputs = [t for node in nodes for t in node.outputs if id(t) in made]
        return _Draft(nodes, list(inputs.values()), outputs, list(constants.values()), self)

    def _remember(
        self, kind: str, name: str, anchor: gs.Node, signature: str, before: _Draft, after: _Draft
    ) -> None:
        first = self._first.get(signature)
        at = anchor.name or anchor.outputs[0].name
        if first is None:
            first = Match(kind, name, at, before.freeze(), after.freeze(), signature)
            self._first[signature] = first
            self.matches.append(first)
        else:
            self.matches.append(Match(kind, name, at, first.before, first.after, signature))

    def miss(self, kind: str, anchor: gs.Node, blocker: gs.Node | None, reason: str) -> None:
        """Note a candidate that was left alone."""
        at = anchor.name or anchor.outputs[0].name
        self.misses.append(NearMiss(kind, at, label(blocker or anchor), reason))

    def finish(self) -> gs.Graph:
        """Drop the dead nodes, sort the living, and return the graph."""
        self.graph.nodes[:] = [n for n in self.graph.nodes if id(n) not in self._dead]
        edit.sweep(self.graph)
        edit.sort(self.graph)
        return self.graph


@dataclass(frozen=True)
class Replacement:
    """What a match becomes; ``also`` are nodes behind the pattern that it takes in, if any."""

    nodes: Sequence[NewNode]
    also: Sequence[gs.Node] = ()


@dataclass(frozen=True)
class Found:
    """One match: what its variables and operators are bound to."""

    work: Work
    bindings: Bindings
    anchor: gs.Node

    def __getitem__(self, name: str) -> gs.Tensor:
        tensor = self.bindings[name]
        assert isinstance(tensor, gs.Tensor)
        return tensor

    def has(self, name: object) -> bool:
        """Tell whether the matched alternatives bound ``name`` (a variable or an operator)."""
        return name in self.bindings

    def label(self, name: str) -> str:
        """Return the label of the alternative that matched in ``one_of(name, ...)``."""
        return str(self.bindings[name])

    def node(self, pattern: Op) -> gs.Node:
        """Return the node that ``pattern`` matched."""
        node = self.bindings[pattern]
        assert isinstance(node, gs.Node)
        return node

    @property
    def nodes(self) -> list[gs.Node]:
        """The matched nodes, in no particular order."""
        return [node for key, node in self.bindings.items() if isinstance(key, Op)]

    def shape(self, name: str) -> tuple[Dim, ...]:
        """Return the shape of variable ``name``.

        Raises:
            Miss: Its rank is not known.
        """
        shape = self.work.shape(self[name])
        if shape is None:
            raise Miss(f"the rank of {self[name].name} is not known", edit.producer(self[name]))
        return shape

    def scalar(self, name: str) -> float:
        """Return the one value of constant ``name``.

        Raises:
            Miss: It has more than one.
        """
        tensor = self[name]
        values = self.work.facts.value(tensor)
        if values is None or values.size != 1:
            raise Miss(f"{tensor.name} is not a scalar constant", self.anchor)
        return float(values.reshape(-1)[0])


@dataclass(frozen=True, eq=False)
class Fusion:
    """One room: the expression that it looks for and what it becomes.

    Attributes:
        kind: The report's key.
        anchors: Operator types of the last node of ``pattern``, in the order of trying.
        pattern: The expression of the first output of the anchor.
        build: From a match to the new nodes; raises Miss where a guard says no.
        near: Operators of the pattern that must be there before a miss is worth a line.
        domain: The anchor's domain.
    """

    kind: str
    anchors: tuple[str, ...]
    pattern: Pattern
    build: Callable[[Found], Replacement]
    near: int = 3
    domain: str = ""

    def run(self, work: Work) -> None:
        """Apply this fusion wherever it fits, and note where it nearly does."""
        matcher = Matcher(self.pattern)
        for types in self.anchors:
            for anchor in work.nodes((types,), self.domain):
                if work.alive(anchor) and anchor.outputs and self._try(work, matcher, anchor):
                    matcher.forget()

    def _try(self, work: Work, matcher: Matcher, anchor: gs.Node) -> bool:
        bindings, fit = matcher.find(anchor.outputs[0])
        if bindings is None:
            self._note(work, anchor, fit)
            return False
        found = Found(work, bindings, anchor)
        try:
            replacement = self.build(found)
            work.replace(self.kind, anchor, [*found.nodes, *replacement.also], replacement.nodes)
        except Miss as miss:
            work.miss(self.kind, anchor, miss.node, miss.reason)
            return False
        except Decline:
            return False
        return True

    def _note(self, work: Work, anchor: gs.Node, fit: Fit) -> None:
        if fit.size >= self.near and fit.blocker is not None:
            blocker = edit.producer(fit.blocker)
            work.miss(self.kind, anchor, blocker, f"{fit.blocker.name} {fit.reason}")


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


# -- subgraphs before and after ---------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    op: str
    domain: str
    attrs: Mapping[str, object]
    inputs: tuple[gs.Tensor, ...]
    outputs: tuple[gs.Tensor, ...]

    def proto(self) -> onnx.NodeProto:
        node = onnx.helper.make_node(
            self.op,
            [t.name for t in self.inputs],
            [t.name for t in self.outputs],
            domain=self.domain or None,
        )
        node.attribute.extend(OnnxExporter.export_attributes(self.attrs))
        return node


def _record(node: gs.Node | NewNode) -> _Record:
    attrs = dict(node.attrs)
    if node.domain == OPFUSE:
        attrs["plugin_namespace"] = OPFUSE
    return _Record(node.op, node.domain or "", attrs, tuple(node.inputs), tuple(node.outputs))


@dataclass(frozen=True)
class _Draft:
    nodes: list[_Record]
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]
    constants: list[gs.Constant]
    work: Work

    def freeze(self) -> Subgraph:
        spec = self._spec
        return Subgraph(
            tuple(node.proto() for node in self.nodes),
            tuple(spec(t) for t in self.inputs),
            tuple(spec(t) for t in self.outputs),
            tuple(self.constants),
            tuple(self._functions()),
        )

    def _spec(self, tensor: gs.Tensor) -> TensorSpec:
        value = self.work.facts.value(tensor)
        sizes = None if value is None else tuple(value.ravel())
        if sizes is not None and not all(isinstance(item, (int, Sym)) for item in sizes):
            sizes = None
        return TensorSpec(tensor.name, self.work.dtype(tensor) or 0, self.work.shape(tensor), sizes)

    def _functions(self) -> Iterator[onnx.FunctionProto]:
        """Yield what defines the fused ops here; it may differ from what the model will hold."""
        for op in dict.fromkeys(node.op for node in self.nodes if node.domain == OPFUSE):
            nodes = [node for node in self.nodes if node.op == op and node.domain == OPFUSE]
            yield self.work.define(op, Uses(self.work.opset, nodes))


def _signature(kind: str, before: _Draft, after: _Draft) -> str:
    """Hash what is computed on which shapes, whatever the names and the weights."""
    numbers: dict[int, int] = defaultdict(lambda: len(numbers))
    text = [kind]
    for draft in (before, after):
        for node in draft.nodes:
            attrs = sorted((k, _attribute_text(v)) for k, v in node.attrs.items())
            ins = [_tensor_text(t, numbers, draft.work) for t in node.inputs]
            text.append(
                f"{node.domain}.{node.op}{attrs}{ins}{[numbers[id(t)] for t in node.outputs]}"
            )
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def _tensor_text(tensor: gs.Tensor, numbers: Mapping[int, int], work: Work) -> str:
    if isinstance(tensor, gs.Constant):
        values = work.facts.value(tensor)
        if values is not None and values.size <= 8:
            return f"{work.dtype(tensor)}{values.tolist()}"
    return f"{numbers[id(tensor)]}:{work.dtype(tensor)}:{_shape_text(work.shape(tensor))}"


def _shape_text(shape: tuple[Dim, ...] | None) -> str:
    return "?" if shape is None else ",".join(str(dim) for dim in shape)


def _attribute_text(value: object) -> str:
    return f"{value.dtype}{value.values.tolist()}" if isinstance(value, gs.Constant) else str(value)


def _gs_dtype(dtype: int) -> object:
    if dtype == onnx.TensorProto.BFLOAT16:
        return dtype
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
