"""Writes an ONNX graph in a spelling drawn at random; without a generator, in the canonical one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_LAST = int(np.iinfo(np.int64).max)
_LOGICAL = frozenset(("IsNaN", "LessOrEqual", "Less", "Greater", "And", "Not"))


class Tensor(NamedTuple):
    """A tensor under construction: its name, NumPy type, and rank."""

    name: str
    dtype: np.dtype[Any]
    rank: int


Input = Tensor | float | Sequence[int] | np.ndarray


@dataclass
class Breaks:
    """Breaks the ``occurrence``-th place that asks for ``name``; notes every place that asks."""

    name: str = ""
    occurrence: int = 0
    places: list[str] = field(default_factory=list)

    def here(self, name: str) -> bool:
        """Tell whether this place is to be broken in the way ``name``."""
        first = name == self.name and self.places.count(name) == self.occurrence
        self.places.append(name)
        return first


@dataclass
class Writer:
    """A graph under construction.

    Attributes:
        opset: Of the default domain.
        dtype: Of weights and activations.
        random: Draws the spelling; None writes the canonical one.
        breaks: What to write otherwise than it should be.
        batch: The symbol of the batch.
        mask_apart: The mask has symbols of its own.
    """

    opset: int
    dtype: np.dtype[Any]
    random: np.random.Generator | None = None
    breaks: Breaks = field(default_factory=Breaks)
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    noise: float = 0.06
    batch: str = "batch"
    mask_apart: bool = False

    def __post_init__(self) -> None:
        self._names = 0
        self._shared: dict[tuple[object, ...], Tensor] = {}
        self._made: dict[tuple[object, ...], Tensor] = {}

    @property
    def element(self) -> int:
        """The ONNX element type of weights and activations."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def pick(self, *options: Any) -> Any:
        """Return one of the options; the first in the canonical spelling."""
        return options[0] if self.random is None else options[self.random.integers(len(options))]

    def chance(self, probability: float) -> bool:
        """Tell whether something rare happens; never in the canonical spelling."""
        return self.random is not None and self.random.random() < probability

    def name(self, stem: str) -> str:
        """Return a name that is new."""
        self._names += 1
        return f"{stem}_{self._names}"

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Tensor:
        """Add a graph input."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return Tensor(name, np.dtype(dtype), len(shape))

    def output(self, tensor: Tensor, name: str) -> None:
        """Make a tensor a graph output."""
        self.nodes.append(helper.make_node("Identity", [tensor.name], [name]))
        self._leaves(name, tensor)

    def _leaves(self, name: str, tensor: Tensor) -> None:
        kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        shape = [f"{name}_{axis}" for axis in range(tensor.rank)]
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def op(self, op: str, *inputs: Input, rank: int | None = None, **attrs: object) -> Tensor:
        """Add a node with one output, now and then with a node that does nothing behind it."""
        made = self.split(op, inputs, 1, rank=rank, **attrs)[0]
        if made.dtype.kind == "f":
            self._escape(made)
        return self._followed(made)

    def _escape(self, inner: Tensor) -> None:
        """Break what stands here by another reader, or by a graph output."""
        if self.breaks.here("a second reader"):
            self.nodes.append(helper.make_node("Neg", [inner.name], ["read"]))
            self.output(Tensor("read", inner.dtype, inner.rank), "also")
        if self.breaks.here("an inner graph output"):
            self._leaves(inner.name, inner)

    def split(
        self,
        op: str,
        inputs: Sequence[Input],
        outputs: int,
        rank: int | None = None,
        **attrs: object,
    ) -> list[Tensor]:
        """Add a node with several outputs."""
        given = [item for item in inputs if isinstance(item, Tensor)]
        floats = [t for t in given if t.dtype.kind == "f"]
        like = (floats or given)[0]
        tensors = [
            self._again(t) if isinstance(t, Tensor) else self.constant(t, like.dtype)
            for t in inputs
        ]
        names = [self.name(op.lower()) for _ in range(outputs)]
        label = self.name(op) if self.pick(True, True, False) else ""
        self.nodes.append(
            helper.make_node(op, [t.name for t in tensors], names, name=label, **attrs)
        )
        dtype = _result_type(op, attrs, tensors)
        size = max(t.rank for t in tensors) if rank is None else rank
        return [Tensor(name, dtype, size) for name in names]

    def _again(self, x: Tensor) -> Tensor:
        """Return ``x``, now and then as an equal node of its own computes it."""
        if not self.chance(self.noise / 4):
            return x
        node = next((node for node in self.nodes if list(node.output) == [x.name]), None)
        if node is None:
            return x
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = "", self.name("again")
        self.nodes.append(twin)
        return Tensor(twin.output[0], x.dtype, x.rank)

    def both(self, op: str, a: Input, b: Input) -> Tensor:
        """Add a commutative node, its operands in either order."""
        return self.op(op, *self.pick((a, b), (b, a)))

    def cast(self, x: Tensor, dtype: Any) -> Tensor:
        """Cast ``x``; a Cast to the type that it has is left out, mostly."""
        if x.dtype == np.dtype(dtype) and not self.chance(self.noise):
            return x
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def constant(self, value: float | Sequence[int] | np.ndarray, dtype: Any) -> Tensor:
        """Return a constant: numbers are of ``dtype``, sequences of integers int64."""
        if isinstance(value, (list, tuple)):
            array = np.array(value, np.int64)
        else:
            array = np.asarray(value) if isinstance(value, np.ndarray) else np.array(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in self._shared and not self.chance(0.5):
            return self._shared[key]
        name = self.name("constant")
        self._store(name, array)
        self._shared[key] = Tensor(name, array.dtype, array.ndim)
        return self._shared[key]

    def _store(self, name: str, array: np.ndarray) -> None:
        """Write a constant as one of the things that ONNX has for it."""
        tensor = numpy_helper.from_array(array, name)
        how = self.pick("initializer", "initializer", "node", "number", "input")
        number = array.dtype in (np.float32, np.int64) and array.ndim < 2
        if how == "number" and number:
            kind = "float" if array.dtype == np.float32 else "int"
            attrs = {f"value_{kind}{'s' if array.ndim else ''}": array.tolist()}
            self.nodes.append(helper.make_node("Constant", [], [name], **attrs))
        elif how in ("node", "number"):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
            if how == "input":  # as exporters wrote before IR version 4: it may be overridden
                self.inputs.append(
                    helper.make_tensor_value_info(name, tensor.data_type, list(array.shape))
                )

    def once(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` wrote for this key before, or write it again."""
        if key not in self._made or self.chance(0.3):
            self._made[key] = make()
        return self._made[key]

    def axes_op(
        self, op: str, x: Tensor, axes: list[int], rank: int, since: int = 13, **attrs: object
    ) -> Tensor:
        """Add a node whose axes are an input from opset ``since`` on, before an attribute."""
        if self.opset >= since:
            return self.op(op, x, axes, rank=rank, **attrs)
        return self.op(op, x, rank=rank, axes=axes, **attrs)

    def size(self, x: Tensor, axis: int) -> Tensor:
        """Return the size of one axis as a tensor of shape [1]."""
        return self.once(("size", x.name, axis), lambda: self._size(x, axis))

    def _size(self, x: Tensor, axis: int) -> Tensor:
        how = self.pick("slice", "gather", "gather vector", "attributes")
        if how == "attributes" and self.opset >= 15:
            return self.op("Shape", x, rank=1, start=axis, end=axis + 1)
        shape = self.once(("shape", x.name), lambda: self.op("Shape", x, rank=1))
        if how == "gather":
            one = self.op("Gather", shape, np.array(axis), rank=0, axis=0)
            return self.op("Unsqueeze", one, [0], rank=1)
        if how == "gather vector":
            return self.op("Gather", shape, [axis], rank=1, axis=0)
        return self.op("Slice", shape, [axis], [axis + 1], [0], rank=1)

    def slice(self, x: Tensor, start: int, end: int, last: bool) -> Tensor:
        """Take start:end of the last axis; ``last`` tells that the end is the axis's own."""
        axis = self.pick(-1, x.rank - 1)
        stop = self.pick(end, _LAST) if last else end
        steps = self.pick([], [[1]])
        return self.op("Slice", x, [start], [stop], [axis], *steps)

    def _followed(self, x: Tensor) -> Tensor:
        if not self.chance(self.noise):
            return x
        self.noise, before = 0.0, self.noise  # nothing behind what does nothing
        x = self._nothing(x) if x.dtype.kind == "f" else self.op("Identity", x)
        self.noise = before
        return x

    def _nothing(self, x: Tensor) -> Tensor:
        how = self.pick("identity", "cast", "one", "zero", "view", "shape")
        if how == "cast":
            return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(x.dtype))
        if how == "one":
            return self.both("Mul", x, 1.0)
        if how == "zero":
            return self.both("Add", x, 0.0)
        if how == "view":
            axis = [self.pick(0, x.rank)]
            return self.op("Squeeze", self.op("Unsqueeze", x, axis, rank=x.rank + 1), axis,
                           rank=x.rank)  # fmt: skip
        if how == "shape" and x.rank:
            return self.op("Reshape", x, self.op("Shape", x, rank=1), rank=x.rank)
        return self.op("Identity", x)

    def model(self) -> onnx.ModelProto:
        """Return the model, its nodes in a random topological order."""
        nodes = self.nodes if self.random is None else _shuffled(self.nodes, self.random)
        graph = helper.make_graph(nodes, "fuzz", self.inputs, self.outputs, self.initializers)
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def _result_type(op: str, attrs: dict[str, object], inputs: Sequence[Tensor]) -> np.dtype[Any]:
    if op == "Cast":
        return helper.tensor_dtype_to_np_dtype(attrs["to"])
    if op in _LOGICAL:
        return np.dtype(bool)
    if op == "Shape":
        return np.dtype(np.int64)
    return inputs[1].dtype if op == "Where" else inputs[0].dtype


def _shuffled(nodes: Sequence[NodeProto], random: np.random.Generator) -> list[NodeProto]:
    made = {name: index for index, node in enumerate(nodes) for name in node.output}
    waits = [{made[name] for name in node.input if name in made} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, sources in enumerate(waits):
        for source in sources:
            readers[source].append(index)
    ready = [index for index, sources in enumerate(waits) if not sources]
    order: list[NodeProto] = []
    while ready:
        index = ready.pop(int(random.integers(len(ready))))
        order.append(nodes[index])
        for reader in readers[index]:
            waits[reader].discard(index)
            if not waits[reader]:
                ready.append(reader)
    return order
