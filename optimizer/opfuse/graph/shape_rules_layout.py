"""Shape rules of operators that move elements and compute none."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from onnx import TensorProto

from opfuse.graph.dims import Dim, Sym, at_least, maximum, minimum, never_equal, product
from opfuse.graph.facts import Fact, Op, Rule, Shape, broadcast_shapes
from opfuse.graph.values import MAX_ELEMENTS, attempt

# Exporters write "to the end" as the largest int32 or int64.
_FAR = (1 << 31) - 1


def constant_shape(shape: Shape) -> tuple[int, ...]:
    """The shape where all of it is constant.

    Raises:
        ValueError: A dimension is symbolic.
    """
    sizes = tuple(dim for dim in shape if isinstance(dim, int))
    if len(sizes) != len(shape):
        raise ValueError("a dimension is symbolic")
    return sizes


def _reshape(op: Op) -> Fact:
    shape, target = op.shape(), op.dims(1)
    if target is None:
        return Fact(None, op.dtype())
    out = _reshaped(op, shape, target)
    value = op.value()
    return Fact(
        out,
        op.dtype(),
        None if value is None else attempt(lambda: value.reshape(constant_shape(out))),
    )


def _reshaped(op: Op, shape: Shape | None, target: list[Dim]) -> Shape:
    out: list[Dim | None] = []
    for axis, dim in enumerate(target):
        if dim == 0 and not op.attr("allowzero", 0):
            out.append(shape[axis] if shape is not None else op.unknown_dim())
        else:
            # What is a size of the input is no -1, even where its formula alone does not tell.
            size = at_least(dim, 0) or (isinstance(dim, Sym) and dim in (shape or ()))
            out.append(dim if size else None)
    if out.count(None) == 1 and shape is not None:
        rest = product(dim for dim in out if dim is not None)
        if rest != 0:
            out[out.index(None)] = product(shape) // rest
    return tuple(op.reshaped_dim(axis) if dim is None else dim for axis, dim in enumerate(out))


def _transpose(op: Op) -> Fact:
    shape, value = op.shape(), op.value()
    if shape is None:
        return Fact(None, op.dtype())
    order = op.attr("perm", list(reversed(range(len(shape)))))
    moved = None if value is None else attempt(lambda: value.transpose(order))
    return Fact(tuple(shape[axis] for axis in order), op.dtype(), moved)


def _unsqueeze(op: Op) -> Fact:
    shape, axes, value = op.shape(), op.axes(1), op.value()
    if shape is None or axes is None:
        return Fact(None, op.dtype())
    rank = len(shape) + len(axes)
    out = list(shape)
    for axis in sorted(axis % rank for axis in axes):
        out.insert(axis, 1)
    moved = None if value is None else attempt(lambda: np.expand_dims(value, tuple(axes)))
    return Fact(tuple(out), op.dtype(), moved)


def _squeeze(op: Op) -> Fact:
    shape, value = op.shape(), op.value()
    if shape is None:
        return Fact(None, op.dtype())
    if op.attr("axes") is None and not op.has(1):
        axes: list[int] | None = [axis for axis, dim in enumerate(shape) if dim == 1]
        if not all(dim == 1 or never_equal(dim, 1) for dim in shape):
            return Fact(None, op.dtype())
    else:
        axes = op.axes(1)
    if axes is None:
        return Fact(None, op.dtype())
    gone = {axis % len(shape) for axis in axes}
    out = tuple(dim for axis, dim in enumerate(shape) if axis not in gone)
    moved = None if value is None else attempt(lambda: value.reshape(constant_shape(out)))
    return Fact(out, op.dtype(), moved)


def _flatten(op: Op) -> Fact:
    shape = op.shape()
    if shape is None:
        return Fact((op.unknown_dim(), op.unknown_dim()), op.dtype())
    axis = int(op.attr("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return Fact((product(shape[:axis]), product(shape[axis:])), op.dtype())


def _concat(op: Op) -> Fact:
    shapes = [op.shape(index) for index in range(len(op.node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return Fact(None, op.dtype())
    rank = len(known[0])
    axis = int(op.attr("axis")) % rank
    out = [_agreed([shape[i] for shape in known]) for i in range(rank)]
    whole = len(known) == len(shapes)
    out[axis] = sum(shape[axis] for shape in known) if whole else op.unknown_dim()
    return Fact(tuple(out), op.dtype(), _concat_value(op) if rank == 1 else None)


def _agreed(dims: list[Dim]) -> Dim:
    """The one size that several tensors share: a constant where one of them says so."""
    return next((dim for dim in dims if isinstance(dim, int)), dims[0])


def _concat_value(op: Op) -> np.ndarray | None:
    if op.dtype() not in (TensorProto.INT64, TensorProto.INT32):
        return None
    parts = [op.dims(index) for index in range(len(op.node.inputs))]
    if any(part is None for part in parts):
        return None
    return attempt(lambda: [dim for part in parts if part is not None for dim in part])


def _split(op: Op) -> tuple[Fact, ...]:
    shape, count = op.shape(), len(op.node.outputs)
    if shape is None:
        return (Fact(None, op.dtype()),) * count
    axis = int(op.attr("axis", 0)) % len(shape)
    sizes = _split_sizes(op, shape[axis], count)
    value, ends = op.value(), list(accumulate(sizes))

    def part(index: int) -> Fact:
        out = (*shape[:axis], op.size(sizes[index]), *shape[axis + 1 :])
        if value is None or len(shape) != 1:
            return Fact(out, op.dtype())
        start, end = ends[index] - sizes[index], ends[index]
        return Fact(out, op.dtype(), attempt(lambda: value[start:end]))

    return tuple(map(part, range(count)))


def _split_sizes(op: Op, dim: Dim, count: int) -> list[Dim]:
    stated = op.attr("split")
    sizes = [int(size) for size in stated] if stated is not None else op.dims(1)
    if sizes is not None and len(sizes) == count:
        return list(sizes)
    if op.has(1):
        return [op.unknown_value() for _ in range(count)]
    # The last part takes the rest: only num_outputs allows an uneven split.
    each = dim // count if dim % count == 0 else (dim + count - 1) // count
    return [each] * (count - 1) + [dim - each * (count - 1)]


def _slice(op: Op) -> Fact:
    shape, value = op.shape(), op.value()
    starts, ends = _bounds(op, "starts", 1), _bounds(op, "ends", 2)
    if shape is None or starts is None or ends is None:
        return Fact(None if shape is None else _forgotten(op, shape), op.dtype())
    axes = op.axes(3) or list(range(len(starts)))
    steps = (op.dims(4) if op.has(4) else None) or [1] * len(starts)
    out = list(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        out[axis] = _kept(op, shape[axis], start, end, step)
    if value is None:
        return Fact(tuple(out), op.dtype())
    index = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return Fact(tuple(out), op.dtype(), attempt(lambda: value[tuple(index)]))


def _kept(op: Op, dim: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    try:
        return op.size(sliced(dim, start, end, step))
    except ValueError:
        return op.unknown_dim()


def _bounds(op: Op, name: str, index: int) -> list[Dim] | None:
    stated = op.attr(name)
    return list(stated) if stated is not None else op.dims(index)


def _forgotten(op: Op, shape: Shape) -> Shape:
    """The shape after a slice of unknown bounds."""
    axes = op.axes(3)
    if axes is None:
        return tuple(op.unknown_dim() for _ in shape)
    touched = {axis % len(shape) for axis in axes}
    return tuple(op.unknown_dim() if axis in touched else dim for axis, dim in enumerate(shape))


def sliced(dim: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """How many of ``dim`` elements ``start:end:step`` keeps.

    Raises:
        ValueError: It depends on signs that are not known.
    """
    if isinstance(step, Sym) or step == 0:
        raise ValueError("the step is not constant")
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(dim)))
    if step < 0:
        return _reversed(dim, start, end, step)
    last = _clamped(end, dim)
    length = _tail(dim, start) if last == dim else maximum(last - _clamped(start, dim), 0)
    return (length + step - 1) // step


def _reversed(dim: Dim, start: Dim, end: Dim, step: int) -> Dim:
    whole = start == -1 or (isinstance(start, int) and start >= _FAR)
    if whole and isinstance(end, int) and end <= -_FAR:
        return (dim - step - 1) // -step
    raise ValueError("a backward slice between symbols")


def _tail(dim: Dim, start: Dim) -> Dim:
    """How many elements ``start:`` keeps, in one spelling: ``seq - min(1, seq)`` is another."""
    if start == -dim:
        return dim  # be it zero, which is the start then
    if at_least(start, 0):
        return maximum(dim - start, 0)
    if at_least(-1, start):
        return minimum(-start, dim)
    raise ValueError("the sign of the start is not known")


def _clamped(index: Dim, dim: Dim) -> Dim:
    if isinstance(index, int) and index >= _FAR:
        return dim
    if at_least(index, 0):
        return minimum(index, dim)
    if at_least(-1, index):
        return maximum(dim + index, 0)
    raise ValueError("the sign of a bound is not known")


def _expand(op: Op) -> Fact:
    shape, target, value = op.shape(), op.dims(1), op.value()
    if shape is None or target is None:
        return Fact(None, op.dtype())
    out = broadcast_shapes([shape, tuple(map(op.size, target))])
    if value is None or out is None:
        return Fact(out, op.dtype())
    wide = out
    return Fact(out, op.dtype(), attempt(lambda: np.broadcast_to(value, constant_shape(wide))))


def _tile(op: Op) -> Fact:
    shape, repeats, value = op.shape(), op.dims(1), op.value()
    if shape is None or repeats is None:
        return Fact(None, op.dtype())
    out = tuple(op.size(dim * times) for dim, times in zip(shape, repeats, strict=True))
    counts, total = op.integers(1), product(out)
    if value is None or counts is None or isinstance(total, Sym) or total > MAX_ELEMENTS:
        return Fact(out, op.dtype())
    return Fact(out, op.dtype(), attempt(lambda: np.tile(value, counts)))


def _pad(op: Op) -> Fact:
    shape, pads = op.shape(), op.dims(1)
    if shape is None or pads is None:
        return Fact(None if shape is None else _padded_anyhow(op, shape), op.dtype())
    axes = op.axes(3) if op.has(3) else list(range(len(shape)))
    if axes is None or len(pads) != 2 * len(axes):
        return Fact(_padded_anyhow(op, shape), op.dtype())
    out = list(shape)
    for position, axis in enumerate(axes):
        out[axis] = op.size(out[axis] + pads[position] + pads[position + len(axes)])
    return Fact(tuple(out), op.dtype())


def _padded_anyhow(op: Op, shape: Shape) -> Shape:
    return tuple(op.unknown_dim() for _ in shape)


def _depth_to_space(op: Op) -> Fact:
    shape, block = op.shape(), int(op.attr("blocksize"))
    if shape is None:
        return Fact(None, op.dtype())
    batch, channels, height, width = shape
    return Fact((batch, channels // block**2, height * block, width * block), op.dtype())


def _space_to_depth(op: Op) -> Fact:
    shape, block = op.shape(), int(op.attr("blocksize"))
    if shape is None:
        return Fact(None, op.dtype())
    batch, channels, height, width = shape
    return Fact((batch, channels * block**2, height // block, width // block), op.dtype())


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
