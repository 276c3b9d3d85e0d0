"""A subgraph on its way to the proof: what it computes, and a hash of that."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from opfuse.graph.collectives import COLLECTIVES
from opfuse.graph.definition import Define, Uses
from opfuse.graph.dims import Dim, Sym
from opfuse.graph.facts import Facts
from opfuse.graph.match import Subgraph, TensorSpec
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.values import content
from opfuse.graph.weights import onnx_dtype

_SPELT_OUT = 8  # elements up to which a constant is part of the computation, not a weight


class NodeLike(Protocol):
    """What a node of a graph and one that is still to be made have in common."""

    @property
    def op(self) -> str:
        """The operator's type."""

    @property
    def domain(self) -> str | None:
        """The operator's domain."""

    @property
    def attrs(self) -> Mapping[str, object]:
        """The attributes as gs holds them."""

    @property
    def inputs(self) -> Sequence[gs.Tensor]:
        """What it reads."""

    @property
    def outputs(self) -> Sequence[gs.Tensor]:
        """What it writes."""


@dataclass(frozen=True)
class Record:
    """A node as it is, or as it will be."""

    op: str
    domain: str
    attrs: Mapping[str, object]
    inputs: tuple[gs.Tensor, ...]
    outputs: tuple[gs.Tensor, ...]

    @classmethod
    def of(cls, node: NodeLike) -> Record:
        """Return what ``node`` is; a fused op carries the plugins' namespace."""
        attrs = dict(node.attrs)
        if node.domain == OPFUSE:
            attrs["plugin_namespace"] = OPFUSE
        return cls(node.op, node.domain or "", attrs, tuple(node.inputs), tuple(node.outputs))

    def proto(self) -> onnx.NodeProto:
        """Return it as ONNX has it."""
        node = onnx.helper.make_node(
            self.op,
            [tensor.name for tensor in self.inputs],
            [tensor.name for tensor in self.outputs],
            domain=self.domain or None,
        )
        node.attribute.extend(OnnxExporter.export_attributes(self.attrs))
        return node


@dataclass(frozen=True)
class Context:
    """What is known around a subgraph."""

    facts: Facts
    opset: int
    define: Define

    def dtype(self, tensor: gs.Tensor) -> int | None:
        """Return the ``onnx.TensorProto`` element type of ``tensor``, or None."""
        return onnx_dtype(tensor) if isinstance(tensor, gs.Constant) else self.facts.dtype(tensor)


@dataclass(frozen=True)
class Draft:
    """Nodes in topological order with the tensors that enter and leave them."""

    nodes: Sequence[Record]
    inputs: Sequence[gs.Tensor]
    outputs: Sequence[gs.Tensor]
    constants: Sequence[gs.Constant]
    context: Context

    @classmethod
    def of(cls, nodes: Iterable[NodeLike], outputs: set[int], context: Context) -> Draft:
        """Return the subgraph of ``nodes``; ``outputs`` are the ids of the tensors that leave."""
        records = [Record.of(node) for node in nodes]
        own = {id(tensor) for record in records for tensor in record.outputs}
        read = {id(t): t for record in records for t in record.inputs if not t.is_empty()}
        constants = [t for t in read.values() if isinstance(t, gs.Constant)]
        inputs = [t for key, t in read.items() if key not in own and not isinstance(t, gs.Constant)]
        leaving = [t for record in records for t in record.outputs if id(t) in outputs]
        return cls(records, inputs, leaving, constants, context)

    def freeze(self) -> Subgraph:
        """Return it as ONNX, for the proof."""
        return Subgraph(
            tuple(node.proto() for node in self.nodes),
            tuple(self._spec(tensor) for tensor in self.inputs),
            tuple(self._spec(tensor) for tensor in self.outputs),
            tuple(self.constants),
            tuple(self._functions()),
        )

    def _spec(self, tensor: gs.Tensor) -> TensorSpec:
        facts = self.context.facts
        value = facts.value(tensor)
        sizes = None if value is None else tuple(value.ravel())
        if sizes is not None and not all(isinstance(item, (int, Sym)) for item in sizes):
            sizes = None
        return TensorSpec(tensor.name, self.context.dtype(tensor) or 0, facts.shape(tensor), sizes)

    def _functions(self) -> Iterator[onnx.FunctionProto]:
        """Yield what defines the fused ops here; it may differ from what the model will hold."""
        fused = [
            node for node in self.nodes if node.domain == OPFUSE and node.op not in COLLECTIVES
        ]
        for op in dict.fromkeys(node.op for node in fused):
            uses = Uses(self.context.opset, [node for node in fused if node.op == op])
            yield self.context.define(op, uses)

    def text(self, numbers: dict[int, int]) -> Iterator[str]:
        """Yield a line a node: what it computes on which shapes, with numbers for names."""
        for node in self.nodes:
            attrs = sorted((name, _attribute_text(value)) for name, value in node.attrs.items())
            ins = [self._tensor_text(tensor, numbers) for tensor in node.inputs]
            outs = [numbers[id(tensor)] for tensor in node.outputs]
            yield f"{node.domain}.{node.op}{attrs}{ins}{outs}"

    def _tensor_text(self, tensor: gs.Tensor, numbers: dict[int, int]) -> str:
        facts, dtype = self.context.facts, self.context.dtype(tensor)
        if isinstance(tensor, gs.Constant):
            values = facts.value(tensor)
            if values is not None and values.size <= _SPELT_OUT:
                return f"{dtype}{values.tolist()}"
        return f"{numbers[id(tensor)]}:{dtype}:{_shape_text(facts.shape(tensor))}"


def signature_of(kind: str, before: Draft, after: Draft) -> str:
    """Return a hash of what is computed on which shapes, whatever the names and the weights."""
    numbers: dict[int, int] = defaultdict(lambda: len(numbers))
    lines = [kind, *before.text(numbers), *after.text(numbers)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _shape_text(shape: tuple[Dim, ...] | None) -> str:
    return "?" if shape is None else ",".join(str(dim) for dim in shape)


def _attribute_text(value: object) -> str:
    return (
        f"{value.dtype}{content(value).tolist()}" if isinstance(value, gs.Constant) else str(value)
    )
