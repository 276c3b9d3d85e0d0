"""Model-local functions: what each fused op computes, in standard ops.

The body is what onnxruntime runs, what TensorRT runs where the plugin is not loaded, and what the
plugin's tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from opfuse.graph.facts import Facts
from opfuse.graph.pattern import OPFUSE

VERSION = 1  # of the domain


class Call(Protocol):
    """A node that calls a function, in a graph or on its way there."""

    @property
    def inputs(self) -> Sequence[gs.Tensor]:
        """What it reads."""

    @property
    def attrs(self) -> Mapping[str, object]:
        """Its attributes."""


@dataclass(frozen=True)
class Uses:
    """The nodes of one op in one model; its function has to serve them all.

    TensorRT wants a call to have as many inputs as the function, so the rooms give all nodes of an
    op the same inputs (``Definition.unify``).
    """

    opset: int
    nodes: Sequence[Call]

    @property
    def inputs(self) -> int:
        """How many inputs the nodes have."""
        return max(len(node.inputs) for node in self.nodes)

    def any(self, attribute: str) -> bool:
        """Tell whether any node sets ``attribute`` to something but 0 or ""."""
        return any(node.attrs.get(attribute) for node in self.nodes)

    def carry(self, attribute: str) -> bool:
        """Tell whether any node has ``attribute``, whatever its value."""
        return any(attribute in node.attrs for node in self.nodes)

    def values(self, attribute: str) -> set[object]:
        """Return the values that ``attribute`` has over the nodes."""
        return {node.attrs.get(attribute) for node in self.nodes}


Define: TypeAlias = Callable[[str, Uses], onnx.FunctionProto]


@dataclass(frozen=True)
class Definition:
    """One fused op: how its function is written for the nodes of a model.

    Attributes:
        op: The op's and the plugin's name.
        inputs, outputs: Formal names; trailing inputs that no node has are left out. Where others
            may be absent, a function of the nodes gives the names of those that are there.
        attributes: Every attribute that a node may carry.
        body: Statements of the ONNX text format (onnx/docs/Syntax.md).
        unify: Makes the nodes of a model alike, where they may differ in their inputs.
        in_fp32: Inputs that may be fp32 beside an x in fp16 or bf16: weights of norms, angles,
            masks. There are few of them, and what is computed from them is computed in fp32.
    """

    op: str
    inputs: tuple[str, ...] | Callable[[Uses], tuple[str, ...]]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: Callable[[Uses], str]
    unify: Callable[[gs.Graph, Sequence[gs.Node], Facts], None] | None = None
    in_fp32: tuple[str, ...] = ()

    def function(self, uses: Uses) -> onnx.FunctionProto:
        """Return the function that all of ``uses`` call."""
        names = self.inputs(uses) if callable(self.inputs) else self.inputs
        inputs = ", ".join(names[: uses.inputs])
        # A declared attribute that no call has is one too many for onnx.reference.
        carried = [name for name in self.attributes if uses.carry(name)]
        body = self.body(uses)
        own = f', "{OPFUSE}" : {VERSION}' if f"{OPFUSE}." in body else ""
        text = (
            f'<domain: "{OPFUSE}", opset_import: ["" : {uses.opset}{own}]>\n'
            f"{self.op} <{', '.join((*carried, 'plugin_namespace'))}> "
            f"({inputs}) => ({', '.join(self.outputs)}) {{\n{body}\n}}"
        )
        return onnx.parser.parse_function(text)


def mean_last(opset: int, result: str, x: str) -> str:
    """Return the statement ``result = mean(x)`` over the last axis, kept."""
    if opset >= 18:
        axis = f"{result}_axis"
        return f"{axis} = Constant<value_ints: ints = [-1]>()\n{result} = ReduceMean({x}, {axis})"
    return f"{result} = ReduceMean<axes: ints = [-1]>({x})"


def halves(opset: int, first: str, second: str, x: str) -> str:
    """Return the statement that splits ``x`` into two halves of its last axis."""
    count = ", num_outputs: int = 2" if opset >= 18 else ""
    return f"{first}, {second} = Split<axis: int = -1{count}>({x})"


def constant(name: str, value: float) -> str:
    """Return the statement ``name = value`` (fp32)."""
    return f"{name} = Constant<value_float: float = {value!r}>()"
