"""What a mask says of numbers of keys, one of each batch, read from the nodes that compute it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.position_masks import COMPARISONS
from opfuse.fusions.positions import INTEGERS, LAYOUT, Line, Lines
from opfuse.graph.edit import maker
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Work


@dataclass(frozen=True)
class Count:
    """Integers ``sign`` * ``base`` + ``line``.

    ``base`` has one axis at most whose size is not 1: ``axis`` of what it is added to, counted from
    the end; None where it has none.
    """

    line: Line
    base: gs.Tensor | None = None
    axis: int | None = None
    sign: int = 1

    def negative(self) -> Count:
        """Return it times -1."""
        return replace(self, line=self.line.scaled(-1), sign=-self.sign)

    def shifted(self, number: int) -> Count:
        """Return it plus a number."""
        return replace(self, line=self.line.shifted(number))

    def plus(self, other: Count) -> Count | None:
        """Return the sum; None where both have a base."""
        line = self.line.plus(other.line)
        if line is None or (self.base is not None and other.base is not None):
            return None
        own = other if self.base is None else self
        return replace(own, line=line)


class CountReader:
    """Reads the masks of one graph. A limit is a Count; keys are seen where it is at least 0."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lines = Lines(work)

    def limits(self, mask: gs.Tensor) -> list[Count] | None:
        """Return the limits of an additive mask that is -inf beyond them, and else 0."""
        node = maker(mask)
        if node is None:
            return None
        if node.op == "Where":
            choice, *numbers = node.inputs
            values = [self._number(tensor) for tensor in numbers]
            if values == [0, -math.inf]:
                return self._holds(choice)
            return self._fails(choice) if values == [-math.inf, 0] else None
        inner = self.limits(node.inputs[0]) if node.op in LAYOUT else None
        return None if inner is None else self._moved(node, inner)

    def _number(self, tensor: gs.Tensor) -> float | None:
        value = self._work.facts.value(tensor)
        known = value is not None and value.size == 1 and isinstance(value.flat[0], (int, float))
        return float(value.flat[0]) if value is not None and known else None

    def _holds(self, tensor: gs.Tensor) -> list[Count] | None:
        """Return where a boolean tensor holds."""
        node = maker(tensor)
        if node is None:
            return None
        if node.op == "And":
            return _both(*(self._holds(part) for part in node.inputs))
        if node.op == "Not":
            return self._fails(node.inputs[0])
        if node.op in COMPARISONS:
            limit = self._compared(node)
            return None if limit is None else [limit]
        inner = self._holds(node.inputs[0]) if node.op in LAYOUT and node.op != "Cast" else None
        return None if inner is None else self._moved(node, inner)

    def _fails(self, tensor: gs.Tensor) -> list[Count] | None:
        """Return where a boolean tensor does not hold."""
        node = maker(tensor)
        if node is not None and node.op == "Or":
            return _both(*(self._fails(part) for part in node.inputs))
        if node is not None and node.op == "Not":
            return self._holds(node.inputs[0])
        found = self._holds(tensor)
        if found is None or len(found) != 1:
            return None
        return [found[0].negative().shifted(-1)]

    def _compared(self, node: gs.Node) -> Count | None:
        """Return what a comparison says is at least 0."""
        a, b, more = COMPARISONS[node.op]
        sides = [self._count(tensor) for tensor in node.inputs]
        signed = [
            None if side is None else side if factor > 0 else side.negative()
            for side, factor in zip(sides, (a, b), strict=True)
        ]
        if signed[0] is None or signed[1] is None:
            return None
        total = signed[0].plus(signed[1])
        return None if total is None else total.shifted(more)

    def _count(self, tensor: gs.Tensor) -> Count | None:
        """Return a tensor of integers; what has no more than one axis is a base, at least."""
        shape, line = self._work.shape(tensor), self._lines.line(tensor)
        if line is not None:
            return Count(line)
        if shape is None or self._work.dtype(tensor) not in INTEGERS:
            return None
        node = maker(tensor)
        found = None
        if node is not None and node.op in ("Add", "Sub"):
            a, b = (self._count(part) for part in node.inputs)
            if a is not None and b is not None:
                found = a.plus(b.negative() if node.op == "Sub" else b)
        elif node is not None and node.op in LAYOUT and not self._narrows(node):
            inner = self._count(node.inputs[0])
            moved = None if inner is None else self._moved(node, [inner])
            found = None if moved is None else moved[0]
        return self._base(tensor, shape) if found is None else found

    def _narrows(self, node: gs.Node) -> bool:
        """Tell whether a node gives int64 as int32, in which a high number becomes another."""
        have, want = (self._work.dtype(t) for t in (node.inputs[0], node.outputs[0]))
        return have == onnx.TensorProto.INT64 and want == onnx.TensorProto.INT32

    def _base(self, tensor: gs.Tensor, shape: Shape) -> Count | None:
        axes = [axis - len(shape) for axis, size in enumerate(shape) if size != 1]
        if len(axes) > 1:
            return None
        flat = (0,) * len(shape)
        return Count(Line(flat, (1,) * len(shape), 0), tensor, axes[0] if axes else None)

    def _moved(self, node: gs.Node, counts: list[Count]) -> list[Count] | None:
        """Return what a node gives that changes which axes its input has."""
        have, want = (self._work.shape(t) for t in (node.inputs[0], node.outputs[0]))
        if have is None or want is None:
            return None
        moved = []
        for count in counts:
            line = self._lines.moved(node, count.line.aligned(len(have)))
            axis = count.axis
            if axis is not None and node.op in ("Unsqueeze", "Reshape"):
                axis = _place(have, want, len(have) + axis)
            if line is None or (count.axis is not None and axis is None):
                return None
            moved.append(replace(count, line=line, axis=axis))
        return moved


def _both(first: list[Count] | None, second: list[Count] | None) -> list[Count] | None:
    return None if first is None or second is None else first + second


def _place(have: Shape, want: Shape, axis: int) -> int | None:
    """Return the place, from the end, of an axis where others of size 1 come or go."""
    kept = [index for index, size in enumerate(have) if size != 1]
    now = [index for index, size in enumerate(want) if size != 1]
    alike = [have[index] for index in kept] == [want[index] for index in now]
    return now[kept.index(axis)] - len(want) if alike and axis in kept else None
