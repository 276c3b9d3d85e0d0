"""What is known of each tensor of a graph, and how a shape rule reads and adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.dims import (
    Dim,
    Sym,
    at_least,
    broadcast,
    is_opaque,
    is_unknown,
    parse,
    product,
    substitute,
    unknown_dim,
    unknown_value,
)
from opfuse.graph.lineage import Lineage
from opfuse.graph.values import INVALID, MAX_ELEMENTS, constant_value, elem_type

Shape: TypeAlias = tuple[Dim, ...]

_STANDARD_DOMAINS = ("", "ai.onnx", "opfuse", None)


@dataclass(frozen=True)
class Fact:
    """What is known of one tensor: each part is None where nothing is.

    ``dtype`` is an ``onnx.TensorProto`` element type. ``value`` is an object array of `Dim`,
    bool, or float with at most `MAX_ELEMENTS` elements.
    """

    shape: Shape | None = None
    dtype: int | None = None
    value: np.ndarray | None = None


NOTHING = Fact()
Rule: TypeAlias = Callable[["Op"], "Fact | tuple[Fact, ...]"]


class Facts:
    """Shapes, dtypes, and small values of the tensors of one graph, by tensor identity.

    A constant's facts are read from the constant itself, so replacing its values is seen.
    ``lineage`` tells what became of tensors that are gone; their facts stay known.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.lineage = Lineage()
        self._rules = rules
        # The tensor is kept beside its fact: a freed tensor's id would be given out again.
        self._known: dict[int, tuple[gs.Tensor, Fact]] = {}
        self._symbols: set[str] = set()
        self._equal: Mapping[str, Dim] = {}
        self._unknowns = 0
        self._reshaped: dict[tuple[Shape | None, int, int], tuple[gs.Tensor, Sym]] = {}

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The dimensions of ``tensor``, or None where not even the rank is known."""
        if isinstance(tensor, gs.Constant):
            return tuple(map(int, tensor.shape))
        return self._fact(tensor).shape

    def dtype(self, tensor: gs.Tensor) -> int | None:
        """The ``onnx.TensorProto`` element type of ``tensor``."""
        if isinstance(tensor, gs.Constant):
            return elem_type(tensor.export_dtype)
        return self._fact(tensor).dtype

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The content of a small tensor: an object array of Dim, bool, or float."""
        if isinstance(tensor, gs.Constant):
            return constant_value(tensor)
        return self._fact(tensor).value

    def knows(self, node: gs.Node) -> bool:
        """Whether the outputs of ``node`` have been inferred."""
        return all(id(tensor) in self._known for tensor in node.outputs)

    def infer(self, node: gs.Node) -> None:
        """Compute and remember the facts of the outputs of ``node`` from those of its inputs."""
        results = self._results(node)
        for tensor, fact in zip(node.outputs, results, strict=False):
            self._remember(tensor, fact)
        for tensor in node.outputs[len(results) :]:
            self._remember(tensor, NOTHING)

    def declare(self, tensor: gs.Tensor) -> None:
        """Take the annotation of a graph input; its symbols become the model's symbols."""
        shape = self._annotation(tensor)
        for dim in shape or ():
            if isinstance(dim, Sym) and not is_unknown(dim):
                self._symbols |= dim.symbols()
        self._known[id(tensor)] = tensor, Fact(shape, elem_type(tensor.dtype))

    def keep_shape(self, tensor: gs.Tensor, older: gs.Tensor) -> None:
        """Give ``tensor``, which stands for ``older`` now, the sizes that ``older`` had.

        Readers of ``older`` go by those, and what a model states of an output is not always so: a
        cache that is longer than what it holds is still named after that. Sizes of ``older`` that
        nothing is known of remain as ``tensor`` has them.
        """
        fact, kept = self._fact(tensor), self.shape(older)
        if fact.shape is None or kept is None or len(fact.shape) != len(kept):
            return
        pairs = zip(fact.shape, kept, strict=True)
        shape = tuple(stated if is_unknown(dim) else dim for stated, dim in pairs)
        self._known[id(tensor)] = tensor, replace(fact, shape=shape)

    def equate(self, equal: Mapping[str, Dim], inputs: Iterable[gs.Tensor]) -> None:
        """Begin again from the graph's inputs, knowing what some of their symbols are."""
        self._equal = equal
        self._known.clear()
        self._symbols.clear()
        for tensor in inputs:
            self.declare(tensor)

    def unknown_dim(self) -> Sym:
        """A new size that nothing is known of."""
        self._unknowns += 1
        return unknown_dim(self._unknowns)

    def reshaped_dim(self, shape: Shape | None, target: gs.Tensor, axis: int) -> Sym:
        """A size that nothing is known of but what it follows from."""
        key = (shape, id(target), axis)
        known = self._reshaped.get(key)
        if known is None or shape is None:
            self._reshaped[key] = known = (target, self.unknown_dim())
        return known[1]

    def unknown_value(self) -> Sym:
        """A new integer that nothing is known of."""
        self._unknowns += 1
        return unknown_value(self._unknowns)

    def _fact(self, tensor: gs.Tensor) -> Fact:
        found = self._known.get(id(tensor))
        if found is None:
            self.declare(tensor)
            found = self._known[id(tensor)]
        return found[1]

    def results(self, node: gs.Node) -> tuple[Fact, ...]:
        """What the outputs of ``node`` would be; nothing is remembered, and it may have no rule."""
        return self._results(node)

    def remember(self, tensor: gs.Tensor, fact: Fact) -> None:
        """Take ``fact`` for what ``tensor`` is."""
        self._remember(tensor, fact)

    def _results(self, node: gs.Node) -> tuple[Fact, ...]:
        rule = self._rules.get(node.op) if node.domain in _STANDARD_DOMAINS else None
        if rule is None:
            return ()
        try:
            results = rule(Op(node, self))
        except INVALID:
            return ()
        return (results,) if isinstance(results, Fact) else results

    def _remember(self, tensor: gs.Tensor, fact: Fact) -> None:
        if isinstance(tensor, gs.Constant) or tensor.name == "":
            return
        shape, dtype = fact.shape, fact.dtype
        if shape is None:
            shape = self._annotation(tensor)
        elif any(is_opaque(dim) for dim in shape):
            shape = self._refined(shape, tensor)
        if dtype is None:
            dtype = elem_type(tensor.dtype)
        value = fact.value
        if value is not None and shape != value.shape:
            shape, value = _reconciled(shape, value)
        self._known[id(tensor)] = tensor, Fact(shape, dtype, value)

    def _refined(self, shape: Shape, tensor: gs.Tensor) -> Shape:
        """``shape`` with its opaque dimensions replaced where the model's annotation is plainer."""
        annotation = self._annotation(tensor)
        if annotation is None or len(annotation) != len(shape):
            return shape
        return tuple(
            stated if is_opaque(dim) and self._plain(stated) else dim
            for dim, stated in zip(shape, annotation, strict=True)
        )

    def _plain(self, stated: Dim) -> bool:
        if isinstance(stated, int):
            return True
        return not is_opaque(stated) and stated.symbols() <= self._symbols

    def _annotation(self, tensor: gs.Tensor) -> Shape | None:
        if tensor.shape is None:
            return None
        return tuple(map(self._annotated_dim, tensor.shape))

    def _annotated_dim(self, dim: object) -> Dim:
        if isinstance(dim, str) and dim:
            return substitute(parse(dim), self._equal)
        if isinstance(dim, (int, np.integer)) and dim >= 0:
            return int(dim)
        return self.unknown_dim()


def _reconciled(shape: Shape | None, value: np.ndarray) -> tuple[Shape | None, np.ndarray | None]:
    """A value tells its shape; where an invalid node makes the two contradict, it is dropped."""
    if shape is None:
        return value.shape, value
    sizes = zip(shape, value.shape, strict=False)
    if len(shape) == value.ndim and all(isinstance(d, Sym) or d == size for d, size in sizes):
        return value.shape, value
    return shape, None


class Op:
    """One node as its rule sees it: inputs by position, an absent one as None."""

    def __init__(self, node: gs.Node, facts: Facts) -> None:
        self.node = node
        self._facts = facts

    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        inputs = self.node.inputs
        return index < len(inputs) and inputs[index].name != ""

    def shape(self, index: int = 0) -> Shape | None:
        """The dimensions of an input; None where it is absent or of unknown rank."""
        return self._facts.shape(self.node.inputs[index]) if self.has(index) else None

    def rank(self, index: int = 0) -> int | None:
        """How many axes an input has."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def dtype(self, index: int = 0) -> int | None:
        """The ``onnx.TensorProto`` element type of an input."""
        return self._facts.dtype(self.node.inputs[index]) if self.has(index) else None

    def value(self, index: int = 0) -> np.ndarray | None:
        """The content of a small input: an object array of Dim, bool, or float."""
        return self._facts.value(self.node.inputs[index]) if self.has(index) else None

    def shape_of(self, tensor: gs.Tensor) -> Shape | None:
        """The shape of a tensor that is an attribute."""
        return self._facts.shape(tensor)

    def value_of(self, tensor: gs.Tensor) -> np.ndarray | None:
        """The content of a tensor that is an attribute."""
        return self._facts.value(tensor)

    def values(self) -> list[np.ndarray] | None:
        """All inputs' contents, or None; weights are only read once the rest is known."""
        found: dict[int, np.ndarray] = {}
        inputs = self.node.inputs
        for index in sorted(range(len(inputs)), key=lambda i: isinstance(inputs[i], gs.Constant)):
            value = self._facts.value(inputs[index])
            if value is None:
                return None
            found[index] = value
        return [found[index] for index in range(len(inputs))]

    def dims(self, index: int) -> list[Dim] | None:
        """The content of a 1-D integer input; what is not known is an unknown integer each."""
        value = self.value(index)
        if value is not None:
            return [int(item) if isinstance(item, bool) else item for item in value.ravel()]
        shape = self.shape(index)
        if shape is None:
            return None
        count = product(shape)
        if isinstance(count, Sym):
            return None
        return [self.unknown_value() for _ in range(count)] if count <= MAX_ELEMENTS else None

    def integers(self, index: int) -> list[int] | None:
        """The content of an integer input where all of it is constant."""
        value = self.value(index)
        if value is None or any(isinstance(item, Sym) for item in value.ravel()):
            return None
        return [int(item) for item in value.ravel()]

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute as gs holds it, or ``default``."""
        return self.node.attrs.get(name, default)

    def axes(self, index: int) -> list[int] | None:
        """Attribute ``axes``, or input ``index`` where the opset has it there."""
        axes = self.attr("axes")
        if axes is None:
            return self.integers(index)
        return [int(axis) for axis in axes]

    def unknown_dim(self) -> Sym:
        """A new size that nothing is known of."""
        return self._facts.unknown_dim()

    def reshaped_dim(self, axis: int) -> Sym:
        """The size of ``axis`` of a Reshape: the same wherever shape and target are the same."""
        return self._facts.reshaped_dim(self.shape(), self.node.inputs[1], axis)

    def unknown_value(self) -> Sym:
        """A new integer that nothing is known of."""
        return self._facts.unknown_value()

    def size(self, value: Dim) -> Dim:
        """``value`` where it is certain to be a size, else an unknown dimension."""
        return value if at_least(value, 0) else self.unknown_dim()


def broadcast_shapes(shapes: Iterable[Shape | None]) -> Shape | None:
    """The NumPy broadcast of shapes, or None where one is unknown."""
    known = list(shapes)
    first = known[0]
    if first is None or all(shape == first for shape in known):
        return first
    return reduce(_broadcast_two, known)


def _broadcast_two(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(map(broadcast, a, b))
