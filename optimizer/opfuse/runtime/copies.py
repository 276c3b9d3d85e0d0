"""What only moves data: from shapes to boxes of memory that the plugin library copies.

A move is one node of ONNX: Concat, Split, Slice, or Transpose, of any type of whole bytes. Its
boxes are what a copy with strides takes: one for each pair of an input and an output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, prod

from opfuse.errors import InputError

_WIDEST = 16  # bytes that a thread copies at once

Numbers = int | tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """A node of ONNX that moves data.

    ``numbers`` are: of Concat ``axis``; of Split ``axis`` and ``sizes``; of Slice ``starts``,
    ``ends``, and ``steps``, all for every axis and the last positive; of Transpose ``perm``.
    """

    op: str
    numbers: Mapping[str, Numbers]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def shapes(self, given: Sequence[Shape]) -> tuple[Shape, ...]:
        """The shapes of the outputs.

        Raises:
            InputError: The inputs do not fit each other, or the move.
        """
        return _RULES[self.op](self, given)[0]

    def boxes(self, given: Sequence[Shape], item: int) -> tuple[Box, ...]:
        """What to copy for inputs of these shapes, of elements of ``item`` bytes.

        Raises:
            InputError: As `shapes` does.
        """
        _, parts = _RULES[self.op](self, given)
        return tuple(_box(self, part, item) for part in parts if 0 not in part.sizes)


@dataclass(frozen=True)
class Box:
    """Bytes of the tensor ``source`` that go to ``target``, both from a first byte on.

    An axis is a size with the bytes from one place to the next in source and target; the last one
    has bytes that lie together in both.
    """

    source: str
    target: str
    first: tuple[int, int]
    axes: tuple[tuple[int, int, int], ...]

    @property
    def run(self) -> int:
        """How many bytes lie together."""
        return self.axes[-1][0]

    def unit(self, *addresses: int) -> int:
        """The most bytes that can be copied at once where the tensors lie at these addresses."""
        *outer, (run, _, _) = self.axes
        steps = [step for axis in outer for step in axis[1:]]
        return gcd(_WIDEST, run, *steps, *self.first, *addresses)


@dataclass(frozen=True)
class _Part:
    """One pair of an input and an output, in elements."""

    source: int
    target: int
    sizes: Shape
    starts: tuple[int, int]
    steps: tuple[Sequence[int], Sequence[int]]


Ruled = tuple[tuple[Shape, ...], list[_Part]]


def _box(move: Move, part: _Part, item: int) -> Box:
    """In bytes, with as few axes as there can be."""
    steps = ([step * item for step in steps] for steps in part.steps)
    axes = [*zip(part.sizes, *steps, strict=True), (item, 1, 1)]
    merged: list[tuple[int, int, int]] = []
    for size, source, target in reversed(axes):
        if merged:
            inner, *steps_of_inner = merged[-1]
            if size == 1:
                continue
            if [source, target] == [inner * step for step in steps_of_inner]:
                merged[-1] = (size * inner, *steps_of_inner)
                continue
        merged.append((size, source, target))
    first = part.starts[0] * item, part.starts[1] * item
    return Box(move.inputs[part.source], move.outputs[part.target], first, tuple(reversed(merged)))


def _steps(shape: Shape) -> list[int]:
    """The elements from one place to the next along each axis of a contiguous tensor."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _concat(move: Move, given: Sequence[Shape]) -> Ruled:
    axis = _axis(move, given[0])
    rest = [(*shape[:axis], *shape[axis + 1 :]) for shape in given]
    if any(len(shape) != len(given[0]) for shape in given) or len(set(rest)) > 1:
        shown = ", ".join(str(list(shape)) for shape in given)
        raise InputError(f"{move.outputs[0]!r} cannot be joined of {shown}")
    sizes = [shape[axis] for shape in given]
    whole = (*given[0][:axis], sum(sizes), *given[0][axis + 1 :])
    parts = []
    for index, (shape, start) in enumerate(zip(given, _starts(sizes), strict=True)):
        to = _steps(whole)
        parts.append(_Part(index, 0, shape, (0, start * to[axis]), (_steps(shape), to)))
    return (whole,), parts


def _split(move: Move, given: Sequence[Shape]) -> Ruled:
    (whole,) = given
    axis, sizes = _axis(move, whole), _all(move, "sizes")
    if sum(sizes) != whole[axis]:
        raise InputError(f"{move.inputs[0]!r} of shape {list(whole)} has no parts of {list(sizes)}")
    shapes = tuple((*whole[:axis], size, *whole[axis + 1 :]) for size in sizes)
    of = _steps(whole)
    parts = [
        _Part(0, index, shape, (start * of[axis], 0), (of, _steps(shape)))
        for index, (shape, start) in enumerate(zip(shapes, _starts(sizes), strict=True))
    ]
    return shapes, parts


def _slice(move: Move, given: Sequence[Shape]) -> Ruled:
    (whole,) = given
    named = (_all(move, name) for name in ("starts", "ends", "steps"))
    found = [range(*slice(*ends).indices(size)) for size, *ends in zip(whole, *named, strict=True)]
    of = _steps(whole)
    shape = tuple(map(len, found))
    first = sum(inner.start * step for inner, step in zip(found, of, strict=True))
    by = [inner.step * step for inner, step in zip(found, of, strict=True)]
    return (shape,), [_Part(0, 0, shape, (first, 0), (by, _steps(shape)))]


def _transpose(move: Move, given: Sequence[Shape]) -> Ruled:
    (whole,) = given
    order, of = _all(move, "perm"), _steps(whole)
    if len(order) != len(whole):
        raise InputError(f"{move.inputs[0]!r} of shape {list(whole)} has not {len(order)} axes")
    shape = tuple(whole[axis] for axis in order)
    return (shape,), [_Part(0, 0, shape, (0, 0), ([of[axis] for axis in order], _steps(shape)))]


_RULES = {"Concat": _concat, "Split": _split, "Slice": _slice, "Transpose": _transpose}
MOVES = frozenset(_RULES)


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    """Where each part begins."""
    return (end - size for end, size in zip(accumulate(sizes), sizes, strict=True))


def _axis(move: Move, shape: Shape) -> int:
    axis = move.numbers["axis"]
    if not isinstance(axis, int) or not 0 <= axis < len(shape):
        raise InputError(f"{move.outputs[0]!r} has no axis {axis}")
    return axis


def _all(move: Move, name: str) -> tuple[int, ...]:
    found = move.numbers[name]
    return (found,) if isinstance(found, int) else found
