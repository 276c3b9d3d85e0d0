"""Integers that grow evenly along their axes, as positions do, read from what computes them.

Tensors are aligned at their last axes, as broadcasting does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.edit import maker
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Work
from opfuse.graph.weights import load

LAYOUT = ("Identity", "Cast", "Expand", "Unsqueeze", "Reshape")  # give a tensor other axes at most
INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
SMALL = 1 << 24  # elements of a constant that is looked through


@dataclass(frozen=True)
class Line:
    """Integers that grow evenly along each axis: ``offset`` + the sum of step * index.

    ``sizes`` are those of the axes, 1 where the step is 0.
    """

    steps: tuple[int, ...]
    sizes: Shape
    offset: Dim

    @classmethod
    def of(cls, steps: Iterable[int], sizes: Shape, offset: Dim) -> Line:
        """Return the line; along an axis of one element nothing grows."""
        moving = tuple(0 if size == 1 else n for n, size in zip(steps, sizes, strict=True))
        return cls(moving, tuple(s if n else 1 for n, s in zip(moving, sizes, strict=True)), offset)

    def scaled(self, factor: int) -> Line:
        """Return ``factor`` times it."""
        steps = (step * factor for step in self.steps)
        return Line.of(steps, self.sizes, self.offset * factor)

    def plus(self, other: Line) -> Line | None:
        """Return the sum, broadcast; None where that depends on which sizes are 1."""
        rank = max(len(self.steps), len(other.steps))
        steps, sizes = [], []
        for (a, one), (b, two) in zip(self._axes(rank), other._axes(rank), strict=True):
            if a and b and one != two:
                return None
            steps.append(a + b)
            sizes.append(one if a else two)
        return Line.of(steps, tuple(sizes), self.offset + other.offset)

    def aligned(self, rank: int) -> Line:
        """Return it over ``rank`` axes, which are no fewer."""
        steps, sizes = zip(*self._axes(rank), strict=True) if rank else ((), ())
        return Line(steps, sizes, self.offset)

    def shifted(self, number: int) -> Line:
        """Return it plus a number."""
        return Line(self.steps, self.sizes, self.offset + number)

    def _axes(self, rank: int) -> list[tuple[int, Dim]]:
        missing = [(0, 1)] * (rank - len(self.steps))
        return [*missing, *zip(self.steps, self.sizes, strict=True)]


class Lines:
    """Reads lines of one graph, each tensor once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        # The tensor is kept beside its line: a freed tensor's id would be given out again.
        self._known: dict[int, tuple[gs.Tensor, Line | None]] = {}

    def line(self, tensor: gs.Tensor) -> Line | None:
        """Return a tensor of integers as a line, None where it is not known to be one."""
        if self._work.dtype(tensor) not in INTEGERS:
            return None
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, self._read(tensor)
        return self._known[id(tensor)][1]

    def truth(self, tensor: gs.Tensor) -> bool | None:
        """Return what every element of a boolean tensor is, None where that is not known."""
        node = maker(tensor)
        if self._work.dtype(tensor) != onnx.TensorProto.BOOL:
            return None
        if isinstance(tensor, gs.Constant):
            values = load(tensor, self._work.base_dir)
            return bool(values.flat[0]) if values.size and values.min() == values.max() else None
        if node is None:
            return None
        if node.op == "Not":
            inner = self.truth(node.inputs[0])
            return None if inner is None else not inner
        if node.op == "Equal":
            line = self.weighed(node.inputs, (1, -1))
            if line is None or any(line.steps) or not isinstance(line.offset, int):
                return None
            return line.offset == 0
        if node.op in LAYOUT and node.op != "Cast":
            return self.truth(node.inputs[0])
        return None

    def weighed(self, tensors: Iterable[gs.Tensor], factors: tuple[int, int]) -> Line | None:
        """Return the sum of two tensors, each times its factor."""
        first, second = (self.line(tensor) for tensor in tensors)
        if first is None or second is None:
            return None
        return first.scaled(factors[0]).plus(second.scaled(factors[1]))

    def moved(self, node: gs.Node, line: Line) -> Line | None:
        """Return a line behind a node that only changes which axes it has."""
        if node.op in ("Identity", "Cast"):
            return line
        have, want = (self._work.shape(t) for t in (node.inputs[0], node.outputs[0]))
        if have is None or want is None or len(have) != len(line.steps):
            return None
        if node.op == "Expand":
            missing = len(want) - len(have)
            return Line((0,) * missing + line.steps, (1,) * missing + line.sizes, line.offset)
        return _with_ones(line, have, want)

    def _read(self, tensor: gs.Tensor) -> Line | None:
        value = self._work.facts.value(tensor)
        if value is not None and value.size == 1:
            return Line((0,) * value.ndim, (1,) * value.ndim, value.flat[0])
        if isinstance(tensor, gs.Constant):
            return _even(load(tensor, self._work.base_dir))
        node = maker(tensor)
        reader = None if node is None else _READERS.get(node.op)
        return None if reader is None else reader(self, node)

    def _range(self, node: gs.Node) -> Line | None:
        start, step = (self.line(node.inputs[index]) for index in (0, 2))
        sizes = self._work.shape(node.outputs[0])
        if start is None or sizes is None or step != Line((), (), 1):
            return None
        return Line.of((1,), sizes, start.offset)

    def _layout(self, node: gs.Node) -> Line | None:
        inner = self.line(node.inputs[0])
        if inner is not None:
            return self.moved(node, inner)
        truth = self.truth(node.inputs[0]) if node.op == "Cast" else None
        return None if truth is None else self._flat(node, int(truth))

    def _flat(self, node: gs.Node, value: Dim) -> Line | None:
        shape = self._work.shape(node.outputs[0])
        return None if shape is None else Line((0,) * len(shape), (1,) * len(shape), value)

    def _negative(self, node: gs.Node) -> Line | None:
        inner = self.line(node.inputs[0])
        return None if inner is None else inner.scaled(-1)

    def _gathered(self, node: gs.Node) -> Line | None:
        """Read what is selected from equal numbers, or their sums where they are 0."""
        inner = self.line(node.inputs[0])
        if inner is None or any(inner.steps) or (node.op == "CumSum" and inner.offset != 0):
            return self._picked(node) if inner is not None and node.op == "GatherND" else None
        return self._flat(node, inner.offset)

    def _picked(self, node: gs.Node) -> Line | None:
        """Read what GatherND takes at indices that are lines, one for each axis of the data."""
        inner, joint = self.line(node.inputs[0]), maker(node.inputs[1])
        whole = self._work.shape(node.inputs[1])
        if inner is None or joint is None or joint.op != "Concat" or whole is None:
            return None
        last = int(joint.attrs["axis"]) % len(whole) == len(whole) - 1
        indices = [line for line in map(self.line, joint.inputs) if line is not None]
        fit = last and len(indices) == len(joint.inputs) == len(inner.steps) == whole[-1]
        if not fit or int(node.attrs.get("batch_dims", 0)):
            return None
        total: Line | None = Line((0,) * (len(whole) - 1), (1,) * (len(whole) - 1), inner.offset)
        for step, index in zip(inner.steps, indices, strict=True):
            counted = isinstance(index.offset, int) and min((index.offset, *index.steps)) >= 0
            if total is None or not counted or index.steps[-1]:
                return None
            inside = Line(index.steps[:-1], index.sizes[:-1], index.offset)
            total = total.plus(inside.scaled(step))
        return total

    def _sliced(self, node: gs.Node) -> Line | None:
        inner = self.line(node.inputs[0])
        return None if inner is None else self.part(node, inner)

    def part(self, node: gs.Node, inner: Line) -> Line | None:
        """Return a part along one axis, whose start counts from the front, in steps of 1."""
        shape = self._work.shape(node.outputs[0])
        known = [self._work.facts.value(tensor) for tensor in node.inputs[1:]]
        numbers = [value.flat[0] for value in known if value is not None and value.size == 1]
        if shape is None or not len(numbers) == len(known) in (3, 4):
            return None
        start, axis, step = numbers[0], numbers[2], numbers[3] if len(numbers) > 3 else 1
        if not isinstance(start, int) or not isinstance(axis, int) or start < 0 or step != 1:
            return None
        return Line.of(inner.steps, shape, inner.offset + start * inner.steps[axis])

    def _joined(self, node: gs.Node) -> Line | None:
        """Read parts along one axis that go on where the one before ends."""
        axis, whole = int(node.attrs["axis"]), self._work.shape(node.outputs[0])
        parts = [line for line in map(self.line, node.inputs) if line is not None]
        shapes = [shape for shape in map(self._work.shape, node.inputs) if shape is not None]
        if whole is None or not len(parts) == len(shapes) == len(node.inputs):
            return None
        along = max((part.steps[axis] for part in parts), key=abs)
        end = parts[0].offset
        for part, shape in zip(parts, shapes, strict=True):
            steps = list(part.steps)
            steps[axis] = along if shape[axis] == 1 else steps[axis]
            others = steps[:axis] + steps[axis:][1:]
            if any(others) or steps[axis] != along or part.offset != end:
                return None
            end = end + along * shape[axis]
        steps = [0] * len(whole)
        steps[axis] = along
        return Line.of(steps, whole, parts[0].offset)


_READERS: dict[str, Callable[[Lines, gs.Node], Line | None]] = {
    "Add": lambda lines, node: lines.weighed(node.inputs, (1, 1)),
    "Sub": lambda lines, node: lines.weighed(node.inputs, (1, -1)),
    "Concat": Lines._joined,
    "CumSum": Lines._gathered,
    "Gather": Lines._gathered,
    "GatherND": Lines._gathered,
    "Neg": Lines._negative,
    "Range": Lines._range,
    "Slice": Lines._sliced,
    **dict.fromkeys(LAYOUT, Lines._layout),
}


def _with_ones(line: Line, have: Shape, want: Shape) -> Line | None:
    """Return ``line`` where axes of size 1 come or go, and the others keep their order."""
    moving = [(size, step) for size, step in zip(have, line.steps, strict=True) if size != 1]
    steps = []
    for size in want:
        if size == 1:
            steps.append(0)
        elif not moving or moving[0][0] != size:
            return None
        else:
            steps.append(moving.pop(0)[1])
    return None if moving else Line.of(steps, want, line.offset)


def _even(values: np.ndarray) -> Line | None:
    """Return an array as a line, if it is one."""
    if values.dtype.kind != "i" or not 0 < values.size <= SMALL:
        return None
    origin = (0,) * values.ndim
    first = int(values[origin])
    steps = []
    for axis, size in enumerate(values.shape):
        second = tuple(int(other == axis) for other in range(values.ndim))
        steps.append(int(values[second]) - first if size > 1 else 0)
    grid = sum(
        (step * index for step, index in zip(steps, np.indices(values.shape), strict=True)), first
    )
    return Line.of(steps, values.shape, first) if np.array_equal(values, grid) else None
