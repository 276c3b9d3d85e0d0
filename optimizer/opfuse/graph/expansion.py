"""One operator of another domain written out in standard operators while the graph is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.facts import Shape
from opfuse.graph.rewriter import Rewriter, numpy_dtype

Results: TypeAlias = "tuple[gs.Tensor, *tuple[gs.Tensor | None, ...]]"


class Unclear(Exception):
    """What a node computes is not certain, or standard operators do not compute it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Expansion:
    """A node on its way: what it reads, and the standard operators that take its place."""

    def __init__(self, rewriter: Rewriter, node: gs.Node) -> None:
        self.node = node
        self._rewriter = rewriter
        self._like = next(tensor for tensor in node.outputs if not tensor.is_empty())

    def __call__(self, op: str, *inputs: gs.Tensor, **attrs: object) -> gs.Tensor:
        """Emit a node and return its output."""
        return self._rewriter.emit(op, inputs, attrs, self._like)

    def get(self, index: int) -> gs.Tensor | None:
        """Return input ``index``, or None where it is absent."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) and not inputs[index].is_empty() else None

    def __getitem__(self, index: int) -> gs.Tensor:
        """Return input ``index``.

        Raises:
            Unclear: It is absent.
        """
        tensor = self.get(index)
        if tensor is None:
            raise Unclear(f"input {index} is absent")
        return tensor

    def shape(self, tensor: gs.Tensor) -> Shape:
        """Return the shape of ``tensor``.

        Raises:
            Unclear: Its rank is not known.
        """
        shape = self._rewriter.shape(tensor)
        if shape is None:
            raise Unclear(f"the rank of {tensor.name} is not known")
        return shape

    def dtype(self, tensor: gs.Tensor) -> int:
        """Return the ``onnx.TensorProto`` element type of ``tensor``.

        Raises:
            Unclear: It is not known.
        """
        dtype = self._rewriter.facts.dtype(tensor)
        if dtype is None:
            raise Unclear(f"the type of {tensor.name} is not known")
        return dtype

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return int(self.node.attrs.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Return a floating-point attribute."""
        return float(self.node.attrs.get(name, default))

    def scalar(self, value: float, like: gs.Tensor) -> gs.Constant:
        """Return a constant of the type of ``like``."""
        values = np.array(value, numpy_dtype(self.dtype(like)))
        return self._rewriter.constant(self._like, values)

    def vector(self, value: float, length: int) -> gs.Constant:
        """Return ``length`` times ``value`` in fp32."""
        return self._rewriter.constant(self._like, np.full(length, value, np.float32))

    def mean_last(self, x: gs.Tensor) -> gs.Tensor:
        """Return the mean over the last axis, kept; its axes are an attribute before opset 18."""
        if self._rewriter.graph.opset >= 18:
            return self("ReduceMean", x, self.integers(-1))
        return self("ReduceMean", x, axes=[-1])

    def integers(self, *values: int) -> gs.Constant:
        """Return an int64 vector."""
        return self._rewriter.constant(self._like, np.array(values, np.int64))

    def index(self, value: int) -> gs.Constant:
        """Return an int64 scalar."""
        return self._rewriter.constant(self._like, np.array(value, np.int64))


@dataclass(frozen=True)
class Entry:
    """What is understood of an operator; anything else of a node leaves it as it is.

    Attributes:
        kind: The kind that it is reported under where it is left.
        expand: From a node to what its outputs are, in their order.
        attributes: Those that ``expand`` reads.
        neutral: Those that it does not read, and what they must be.
        inputs: How many inputs ``expand`` knows.
        outputs: The outputs that it gives.
    """

    kind: str
    expand: Callable[[Expansion], Results]
    attributes: tuple[str, ...] = ()
    neutral: Mapping[str, object] = field(default_factory=dict)
    inputs: int = 1
    outputs: tuple[int, ...] = (0,)

    def apply(self, rewriter: Rewriter, node: gs.Node) -> Results:
        """Return what stands for each output of ``node``.

        Raises:
            Unclear: Something of the node is not understood.
        """
        for name, value in node.attrs.items():
            if name not in self.attributes and self.neutral.get(name, ()) != value:
                raise Unclear(f"has {name}={value}, which standard operators do not express")
        for index, tensor in enumerate(node.inputs):
            if index >= self.inputs and not tensor.is_empty():
                raise Unclear(f"has input {index}, {tensor.name}, which is not understood")
        for index, tensor in enumerate(node.outputs):
            if index not in self.outputs and is_read(rewriter, tensor):
                raise Unclear(f"its output {tensor.name} is needed, which is not understood")
        return self.expand(Expansion(rewriter, node))


def is_read(rewriter: Rewriter, tensor: gs.Tensor) -> bool:
    """Tell whether anything depends on ``tensor``."""
    own = any(output is tensor for output in rewriter.graph.outputs)
    return not tensor.is_empty() and (own or bool(tensor.outputs))
