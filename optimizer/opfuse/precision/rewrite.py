"""Gives every tensor the type that the plan says, and casts what is read in another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph import edit
from opfuse.graph.facts import Fact, Facts
from opfuse.graph.weights import CastValues, gs_dtype, load
from opfuse.precision.plan import Ends
from opfuse.precision.signature import Signature
from opfuse.precision.types import NAMES

Values = np.ndarray[Any, Any]

_FLOAT = TensorProto.FLOAT
_SMALL = 1 << 16  # bytes of a weight that is cast at once


def dissolve(graph: gs.Graph, signatures: Mapping[int, Signature], low: int) -> None:
    """Let what reads a Cast between fp32 and ``low`` read its source; the plan casts anew.

    A Cast that makes a graph output, or what a body reads, stays where it is.
    """
    fixed = edit.returned(graph)
    own = {id(node) for node in graph.nodes}
    for node in graph.nodes:
        signature = signatures[id(node)]
        between = {*signature.types, *signature.results} <= {_FLOAT, low}
        if node.op == "Cast" and edit.is_standard(node) and between:
            (output,) = node.outputs
            if id(output) not in fixed and all(id(reader) in own for reader in output.outputs):
                edit.redirect(output, node.inputs[0])
                edit.detach(node)
    graph.nodes[:] = [node for node in graph.nodes if node.outputs]


class Rewrite:
    """One graph on its way into its new types."""

    def __init__(
        self,
        graph: gs.Graph,
        signatures: Mapping[int, Signature],
        in_low: frozenset[int],
        ends: Ends,
        low: int,
        facts: Facts,
        base_dir: Path,
    ) -> None:
        """Take the plan: ``in_low`` are the ids of the nodes that compute in ``low``."""
        self._graph, self._signatures, self._in_low = graph, signatures, in_low
        self._ends, self._low, self._facts, self._base_dir = ends, low, facts, base_dir
        self._names = edit.names(graph) | {node.name for node in edit.every_node(graph)}
        self._was: dict[int, int] = {}
        # The source is kept beside what was made of it: a freed one's id would be given again.
        self._made: dict[tuple[int, int], tuple[gs.Tensor, gs.Tensor]] = {}
        self._casts: list[gs.Node] = []

    def run(self) -> None:
        """Rewrite the graph in place; its nodes are sorted afterwards."""
        for tensor in self._graph.inputs:
            if id(tensor) in self._ends.inputs:
                self._set(tensor, self._ends.inputs[id(tensor)])
        for node in self._graph.nodes:
            self._type_outputs(node)
        nodes = list(self._graph.nodes)
        self._make_outputs()
        for node in nodes:
            self._type_inputs(node)
        self._graph.nodes.extend(self._casts)
        self._drop_idle_casts()
        edit.sweep(self._graph)
        edit.sort(self._graph)
        self._restore_names()

    def _precision(self, node: gs.Node) -> int:
        return self._low if id(node) in self._in_low else _FLOAT

    def _set(self, tensor: gs.Tensor, element: int, like: gs.Tensor | None = None) -> None:
        """Let ``tensor`` be of type ``element``; what else is known of it is known of ``like``."""
        facts, like = self._facts, tensor if like is None else like
        self._was.setdefault(id(tensor), facts.dtype(like) or 0)
        facts.remember(tensor, Fact(facts.shape(like), element, facts.value(like)))
        tensor.dtype = gs_dtype(element)

    def _type(self, tensor: gs.Tensor) -> int:
        return self._facts.dtype(tensor) or 0

    def _type_outputs(self, node: gs.Node) -> None:
        signature = self._signatures[id(node)]
        element = self._precision(node)
        for index in sorted(signature.outputs):
            self._set(node.outputs[index], element)
        if signature.outputs and node.op == "Cast":
            node.attrs["to"] = element
        if signature.outputs and node.op == "ConstantOfShape":
            value = node.attrs.get("value")
            values = np.zeros(1) if value is None else load(value, self._base_dir)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
            node.attrs["value"] = gs.Constant("value", values.astype(dtype))

    def _make_outputs(self) -> None:
        """Cast a graph output whose node gives another type than it is to have."""
        for output in self._graph.outputs:
            want = self._ends.outputs.get(id(output))
            node = edit.producer(output)
            have = self._type(output)
            if want is None or have == want or node is None:
                continue
            inner = gs.Variable(self._name(f"{output.name}/{NAMES[have]}"), None, output.shape)
            edit.redirect(output, inner)
            _take_over(node, output, inner)
            self._set(inner, have, output)
            self._was[id(inner)] = self._was.get(id(output), have)
            self._set(output, want)
            self._add_cast(inner, output, want)
            self._made[id(inner), want] = inner, output

    def _type_inputs(self, node: gs.Node) -> None:
        signature = self._signatures[id(node)]
        for index, tensor in enumerate(list(node.inputs)):
            if index in signature.main:
                want = self._precision(node)
            elif index in signature.loose or signature.types[index] not in (_FLOAT, self._low):
                continue
            else:
                want = signature.types[index]
            if self._type(tensor) != want:
                edit.set_input(node, index, self._converted(tensor, want))
        for body in edit.subgraphs(node):
            self._type_captured(body)

    def _type_captured(self, body: gs.Graph) -> None:
        """Let bodies, which stay as they are, read what they have read."""
        for inner in edit.every_node(body):
            for index, tensor in enumerate(list(inner.inputs)):
                was = self._was.get(id(tensor), 0)
                if was and self._type(tensor) != was:
                    edit.set_input(inner, index, self._converted(tensor, was))

    def _converted(self, tensor: gs.Tensor, element: int) -> gs.Tensor:
        """Return ``tensor`` in another type; each is made once."""
        key = (id(tensor), element)
        if key not in self._made:
            name = self._name(f"{tensor.name}/{NAMES[element]}")
            if isinstance(tensor, gs.Constant):
                made = self._constant(tensor, element, name)
            else:
                made = gs.Variable(name, None, tensor.shape)
                self._set(made, element, tensor)
                self._add_cast(tensor, made, element)
            self._made[key] = tensor, made
        return self._made[key][1]

    def _constant(self, tensor: gs.Constant, element: int, name: str) -> gs.Constant:
        values = CastValues(tensor, element, self._base_dir)
        made = gs.Constant(name, values)
        if values.nbytes == 2 and load(tensor, self._base_dir).item():
            made.values = _not_zero(values.load(), load(tensor, self._base_dir))
            return made
        if values.nbytes <= _SMALL:
            made.values = values.load()
        return made

    def _add_cast(self, source: gs.Tensor, made: gs.Tensor, element: int) -> None:
        """A value that a Cast made is cast again from where it came."""
        node = edit.producer(source)
        if node is not None and node.op == "Cast" and edit.is_standard(node):
            source = node.inputs[0]
        name = self._name(f"{made.name}/Cast")
        self._casts.append(gs.Node("Cast", name, {"to": element}, [source], [made]))

    def _drop_idle_casts(self) -> None:
        """A Cast to the type that its input has by now hands it on."""
        captured = edit.captured(self._graph)
        for node in self._graph.nodes:
            if node.op != "Cast" or not edit.is_standard(node):
                continue
            source, output = node.inputs[0], node.outputs[0]
            if self._type(source) != node.attrs.get("to"):
                continue
            producer = edit.producer(source)
            ends = {id(tensor) for tensor in self._graph.outputs} | captured
            if producer is None or id(source) in ends:
                node.op, node.attrs = "Identity", {}
                continue
            edit.detach(node)
            edit.redirect(source, output)
            _take_over(producer, source, output)

    def _restore_names(self) -> None:
        """A weight that is read in its new type only keeps its name."""
        for old, made in self._made.values():
            if isinstance(made, gs.Constant) and not old.outputs:
                made.name = old.name

    def _name(self, base: str) -> str:
        name = base
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _not_zero(low: Values, wide: Values) -> Values:
    """A single number, or the type's smallest of its sign where it would have become 0."""
    smallest = ml_dtypes.finfo(low.dtype).smallest_subnormal  # type: ignore[no-untyped-call]
    return low if low.item() else np.copysign(smallest, wide).astype(low.dtype)


def _take_over(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let ``node`` write ``new`` where it wrote ``old``."""
    index = next(i for i, tensor in enumerate(node.outputs) if tensor is old)
    list.__setitem__(node.outputs, index, new)
    list.clear(old.inputs)
    list.append(new.inputs, node)
