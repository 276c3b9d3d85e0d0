"""A forward sweep over a graph that rewrites node by node and keeps the facts up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.facts import Facts, Shape
from opfuse.graph.weights import DerivedValues, gs_dtype

Rule = Callable[["Rewriter", gs.Node], "gs.Tensor | None"]


class Rewriter:
    """Applies rules to every node once, in topological order.

    A rule returns the tensor that holds what the node's first output holds, if it knows one; the
    node is then dropped. It may also change the node in place, and emit new ones before it. What a
    tensor holds never changes, so facts stay true over any number of sweeps, and each node's
    outputs are inferred once.
    """

    def __init__(self, graph: gs.Graph, facts: Facts, base_dir: Path = Path()) -> None:
        self.graph = graph
        self.facts = facts
        self.base_dir = base_dir  # that external weights are relative to
        self.changed = False
        self._names = edit.names(graph)
        self._fixed = {id(tensor) for tensor in graph.outputs}
        self._captured = edit.captured(graph)
        self._ordered: list[gs.Node] = []

    def run(self, rules: Mapping[str, Sequence[Rule]], everywhere: Sequence[Rule] = ()) -> None:
        """Visit every node.

        Args:
            rules: By operator; one of another domain as ``domain.Operator``.
            everywhere: Rules for all standard operators, tried last.
        """
        for node in list(self.graph.nodes):
            domain = "" if edit.is_standard(node) else f"{node.domain}."
            own = rules.get(f"{domain}{node.op}", ())
            self._visit(node, own if domain else (*own, *everywhere))
        self.graph.nodes[:] = self._ordered

    def _visit(self, node: gs.Node, rules: Sequence[Rule]) -> None:
        if not self.facts.knows(node):
            self.facts.infer(node)
        if len(node.outputs) >= 1:
            for rule in rules:
                result = rule(self, node)
                if result is not None and self._forward(node, result):
                    self.changed = True
                    return
        self._ordered.append(node)

    def _forward(self, node: gs.Node, result: gs.Tensor) -> bool:
        """Let ``result`` stand for the node's output; False where its name must stay."""
        old = node.outputs[0]
        result = self.facts.lineage.present(result)  # a rule may remember what was renamed since
        if id(old) in self._captured or id(old) in self._fixed:
            if id(old) in self._fixed and self._rename(node, old, result):
                return True
            edit.redirect(old, result)  # its own readers need not go through what must stay
            return False
        edit.redirect(old, result)
        edit.detach(node)
        self.facts.lineage.forward(old, result)
        return True

    def _rename(self, node: gs.Node, old: gs.Tensor, result: gs.Tensor) -> bool:
        """Give ``result`` the identity of graph output ``old``."""
        source = edit.producer(result)
        kept = id(result) in self._fixed or id(result) in self._captured
        if source is None or kept or isinstance(result, gs.Constant):
            return False
        index = next(i for i, tensor in enumerate(source.outputs) if tensor is result)
        edit.detach(node)
        edit.redirect(result, old)
        self.facts.lineage.forward(result, old)
        list.__setitem__(source.outputs, index, old)
        list.clear(result.inputs)
        list.append(old.inputs, source)
        self.facts.infer(source)
        self.facts.keep_shape(old, result)
        return True

    def become_identities(self, node: gs.Node, first: gs.Tensor, *others: gs.Tensor | None) -> None:
        """Let ``node`` hand on what its outputs hold; None for one that nothing reads.

        It becomes an Identity of the first, and the others get one each before it.
        """
        for tensor, result in list(zip(node.outputs[1:], others, strict=False)):
            if result is not None and not tensor.is_empty():
                edit.release_output(node, tensor)
                other = gs.Node("Identity", tensor.name, {}, [result], [tensor])
                self._ordered.append(other)
                self.facts.infer(other)
        output = node.outputs[0]
        edit.detach(node)
        node.op, node.domain, node.attrs = "Identity", "", {}
        list.append(node.inputs, first)
        list.append(first.outputs, node)
        list.append(node.outputs, output)
        list.append(output.inputs, node)
        self.facts.infer(node)
        self.changed = True

    def emit(
        self, op: str, inputs: Sequence[gs.Tensor], attrs: Mapping[str, object], like: gs.Tensor
    ) -> gs.Variable:
        """Add a node before the one visited and return its output, named after ``like``."""
        output = gs.Variable(self.name(f"{like.name}/{op}"))
        node = gs.Node(op, output.name, dict(attrs), list(inputs), [output])
        self._ordered.append(node)
        self.facts.infer(node)
        self.facts.lineage.derive(output, like)
        dtype = self.facts.dtype(output)
        output.dtype = None if dtype is None else gs_dtype(dtype)
        self.changed = True
        return output

    def constant(self, like: gs.Tensor, values: np.ndarray | DerivedValues) -> gs.Constant:
        """Return a constant named after ``like``."""
        return gs.Constant(self.name(f"{like.name}/constant"), values)

    def name(self, base: str) -> str:
        """Return a tensor name that nothing has yet."""
        name, count = base, 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name

    def is_needed(self, tensor: gs.Tensor) -> bool:
        """Tell whether the graph gives ``tensor``, or a body in it reads it."""
        return id(tensor) in self._fixed or id(tensor) in self._captured

    def out_shape(self, node: gs.Node) -> Shape | None:
        """Return the symbolic shape of the first output of ``node``."""
        return self.facts.shape(node.outputs[0])

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Return the symbolic shape of ``tensor``."""
        return self.facts.shape(tensor)

    def integers(self, tensor: gs.Tensor) -> list[int] | None:
        """Return the content of a small integer tensor where all of it is known."""
        value = self.facts.value(tensor)
        if value is None or not all(isinstance(item, int) for item in value.ravel()):
            return None
        return [int(item) for item in value.ravel()]

    def scalar(self, tensor: gs.Tensor) -> float | None:
        """Return the one value of a constant of one element."""
        if not isinstance(tensor, gs.Constant) or prod(tensor.shape) != 1:
            return None
        value = self.facts.value(tensor)
        return None if value is None else float(value.ravel()[0])


def numpy_dtype(dtype: int | None) -> np.dtype | None:
    """Return the NumPy dtype of an ONNX element type."""
    return None if not dtype else onnx.helper.tensor_dtype_to_np_dtype(dtype)
