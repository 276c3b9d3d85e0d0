"""Fused graph in fp32 -> the same graph in fp16 or bf16, wherever the rules allow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs
from onnx import FunctionProto, TensorProto

from opfuse.graph import edit
from opfuse.graph.bodies import INNER
from opfuse.graph.facts import Facts
from opfuse.graph.lineage import UserGraph
from opfuse.graph.weights import onnx_dtype
from opfuse.precision.constants import Weights
from opfuse.precision.counted import is_product
from opfuse.precision.exact import exact
from opfuse.precision.plan import Ends, Plan
from opfuse.precision.result import Kept, Precision
from opfuse.precision.rewrite import Rewrite, dissolve
from opfuse.precision.signature import Signatures
from opfuse.precision.types import LOW, NAMES
from opfuse.precision.verdict import Judge, Verdict

_FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Subject:
    """A fused graph: sorted, with its facts, its fused ops' definitions, and the user's names."""

    graph: gs.Graph
    facts: Facts
    functions: Mapping[str, FunctionProto]
    user: UserGraph
    base_dir: Path


class Conversion:
    """One graph on its way to another precision: first what to measure, then the rest."""

    def __init__(self, subject: Subject, precision: str, io_precision: str) -> None:
        """Look at ``subject``; nothing is changed yet."""
        self._subject, self._precision, self._io = subject, precision, io_precision
        self._low = LOW[precision]
        graph, facts = subject.graph, subject.facts
        types = {
            id(tensor): facts.dtype(tensor) or 0
            for node in graph.nodes
            for tensor in (*node.inputs, *node.outputs)
            if not tensor.is_empty()
        }
        signatures = Signatures(int(graph.opset), self._low, types, subject.functions)
        self._nodes = list(graph.nodes)  # held: those that go must not leave their ids to others
        self._signatures = {id(node): signatures.of(node) for node in self._nodes}
        self._ends = Ends(self._of_ends(graph.inputs), self._of_ends(graph.outputs))

    def measured(self) -> set[str]:
        """Return the fp32 tensors whose magnitude decides, ``node//value`` for those in bodies."""
        names: set[str] = set()
        for node in self._subject.graph.nodes:
            signature = self._signatures[id(node)]
            if not signature.free:
                continue
            ends = [node.inputs[index] for index in signature.main]
            ends += [node.outputs[index] for index in signature.outputs]
            wide = [t for t in ends if not isinstance(t, gs.Constant) and self._is_fp32(t)]
            names.update(tensor.name for tensor in wide)
            if wide:
                names.update(f"{node.name}{INNER}{name}" for name in signature.rounded)
        return names

    def apply(self, ranges: Mapping[str, float], source: str) -> Precision:
        """Convert the graph in place and tell what was done; ``source`` is that of ``ranges``."""
        graph, facts = self._subject.graph, self._subject.facts
        before = self._casts()
        weights = Weights(self._low, self._precision, self._subject.base_dir)
        apart = exact(graph, self._signatures, facts)
        ends = {id(tensor) for tensor in graph.outputs}
        judge = Judge(self._low, facts, weights, ranges, apart, self._subject.functions, ends)
        verdicts = {id(node): judge.of(node, self._signatures[id(node)]) for node in graph.nodes}
        kept = tuple(self._kept(verdicts))
        dissolve(graph, self._signatures, self._low)
        plan = Plan(graph, self._signatures, verdicts, self._ends, self._low, facts)
        counted = self._counted(plan.low)
        names = frozenset(node.name for node in graph.nodes if self._wide_product(node, plan.low))
        Rewrite(
            graph,
            self._signatures,
            plan.low,
            self._ends,
            self._low,
            facts,
            self._subject.base_dir,
        ).run()
        return Precision(
            self._precision,
            self._io,
            source,
            *counted,
            dict(self._weights()),
            self._casts(),
            before,
            kept,
            names=names,
        )

    def _of_ends(self, tensors: Iterable[gs.Tensor]) -> dict[int, int]:
        """The types that float inputs or outputs are to have, by tensor id."""
        types = {id(tensor): self._subject.facts.dtype(tensor) for tensor in tensors}
        wanted = LOW.get(self._io)
        return {
            key: element if wanted is None else wanted
            for key, element in types.items()
            if element in (_FLOAT, self._low)
        }

    def _is_fp32(self, tensor: gs.Tensor) -> bool:
        return self._subject.facts.dtype(tensor) == _FLOAT

    def _kept(self, verdicts: Mapping[int, Verdict]) -> Iterable[Kept]:
        user = self._subject.user
        for node in self._subject.graph.nodes:
            verdict = verdicts[id(node)]
            if verdict.kept:
                owner = user.owner(node.outputs[0].name, node.op) if node.outputs else None
                yield Kept(owner.name if owner else node.name, node.op, verdict.reason)

    def _counted(self, low: frozenset[int]) -> tuple[dict[str, int], dict[str, int]]:
        """Nodes, and products among them, by the type that they compute in."""
        nodes: Counter[str] = Counter()
        products: Counter[str] = Counter()
        for node in self._subject.graph.nodes:
            signature = self._signatures[id(node)]
            if signature.free and node.op != "Cast":
                name = NAMES[self._low if id(node) in low else _FLOAT]
                nodes[name] += 1
                products[name] += self._is_product(node)
        return dict(sorted(nodes.items())), dict(sorted(products.items()))

    def _is_product(self, node: gs.Node) -> bool:
        return is_product(node, self._subject.functions)

    def _wide_product(self, node: gs.Node, low: frozenset[int]) -> bool:
        return self._is_product(node) and id(node) not in low

    def _weights(self) -> Iterable[tuple[str, int]]:
        total: Counter[str] = Counter()
        for tensor in self._subject.graph.tensors().values():
            if isinstance(tensor, gs.Constant) and onnx_dtype(tensor) in NAMES:
                total[NAMES[onnx_dtype(tensor)]] += int(tensor._values.nbytes)
        return sorted(total.items())

    def _casts(self) -> int:
        """How many Casts stand between fp32 and the low type."""
        facts, both = self._subject.facts, {_FLOAT, self._low}
        return sum(
            node.op == "Cast"
            and edit.is_standard(node)
            and facts.dtype(node.inputs[0]) in both
            and facts.dtype(node.outputs[0]) in both
            for node in edit.every_node(self._subject.graph)
        )
