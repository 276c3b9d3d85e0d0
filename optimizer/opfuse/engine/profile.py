"""Optimization profiles: the sizes of dynamic inputs, consistent over all that share a symbol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import GraphProto, ValueInfoProto

from opfuse.errors import InputError
from opfuse.graph.dims import Dim, Sym, evaluate, parse, symbol

LEVELS = ("min", "opt", "max")
LONGEST = 512
_BATCH = (1, 1, 8)
USUAL = 128
_SPELT_SUM = re.compile(r"(\w+?)_(plus|minus)_(\w+)")
_OPTIONS = "set --minShapes, --optShapes and --maxShapes"

# Names that exporters give to sums, where the summands are dimensions of the model too.
_CONVENTIONS = {
    "total_sequence_length": "past_sequence_length + sequence_length",
    "total_seq_len": "past_seq_len + seq_len",
}

Shape = tuple[int, ...]


class Range(NamedTuple):
    """The smallest, the usual, and the largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Profile:
    """``ranges`` of all dynamic inputs, and in words what nobody had said about them.

    ``sizes`` are the values of the symbols of `dimensions` at min, opt, and max.
    """

    ranges: dict[str, Range]
    assumed: tuple[str, ...]
    sizes: tuple[Mapping[str, int], ...] = ({}, {}, {})


def resolve(
    graph: GraphProto, given: Sequence[Mapping[str, Shape]], longest: int = LONGEST
) -> Profile:
    """Find the range of every dynamic input.

    A given shape fixes the symbols in it, for all inputs: ``input_ids:1x64`` also says what
    ``past + seq`` is. A level that is not given is taken from the others as trtexec does; a symbol
    that nothing is given for gets 1/1/8 on the first axis (a batch), else 1/128/512.

    Args:
        graph: The model; its inputs without an initializer count.
        given: Shapes by input name, for min, opt, and max.
        longest: The largest size that is assumed for anything but a batch.

    Raises:
        InputError: An input has no rank or is no tensor, or shapes contradict the model or
            each other; the message lists the inputs.
    """
    inputs = dimensions(graph)
    listing = "the inputs are " + ", ".join(f"{k} {_written(v)}" for k, v in inputs.items())
    bound = [
        _bind(level, shapes, inputs, listing) for level, shapes in zip(LEVELS, given, strict=True)
    ]
    sizes, assumed = _complete(inputs, bound, longest, listing)
    ranges = {}
    for name, dims in inputs.items():
        if any(isinstance(dim, Sym) for dim in dims):
            ranges[name] = Range(*(_evaluated(name, dims, level, listing) for level in sizes))
    for index, (level, shapes) in enumerate(zip(LEVELS, given, strict=True)):
        found = {name: levels[index] for name, levels in ranges.items()}
        _check_given(level, shapes, found, inputs, listing)
    return Profile(ranges, assumed, tuple(sizes))


def completed(
    inputs: Mapping[str, tuple[Dim, ...]], usual: Mapping[str, Shape], given: Mapping[str, Shape]
) -> dict[str, Shape]:
    """The shape of every input: as given, or else as usual in what the given ones do not say.

    Args:
        inputs: The dimensions of each.
        usual: A shape for each.
        given: Shapes for some: ``input_ids:1x64`` also says how long the mask is.

    Raises:
        InputError: A shape is for no input or has another rank; the fix lists the inputs.
    """
    listing = "the inputs are " + ", ".join(f"{k} {_written(v)}" for k, v in inputs.items())
    sizes = _bind("usual", usual, inputs, listing) | _bind("opt", given, inputs, listing)
    found = {}
    for name, dims in inputs.items():
        try:
            shape = tuple(evaluate(dim, sizes) for dim in dims)
        except (KeyError, ZeroDivisionError):
            shape = usual[name]
        found[name] = given.get(name, shape)
    return found


def dimensions(graph: GraphProto) -> dict[str, tuple[Dim, ...]]:
    """The shape of every input that a caller gives, in symbols that the profile knows.

    Raises:
        InputError: An input has no rank or is no tensor.
    """
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            raise InputError(f"input {value.name!r} is not a tensor; TensorRT takes only tensors")
        if not value.type.tensor_type.HasField("shape"):
            raise InputError(
                f"input {value.name!r} has no rank", "export the model with its input shapes"
            )
    texts = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim}
    return {value.name: tuple(_input_dims(value, texts)) for value in inputs}


def _input_dims(value: ValueInfoProto, texts: set[str]) -> Iterable[Dim]:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.dim_param:
            yield parse(_expression(dim.dim_param, texts))
        elif dim.HasField("dim_value") and dim.dim_value >= 0:
            yield dim.dim_value
        else:
            yield symbol(f"axis {axis} of {value.name}")


def _expression(text: str, texts: set[str]) -> str:
    """What a name such as ``past_plus_1`` says, where ``past`` is a dimension of the model."""
    summands = _CONVENTIONS.get(text, "")
    if summands and texts.issuperset(summands.split(" + ")):
        return summands
    spelt = _SPELT_SUM.fullmatch(text)
    if spelt is None:
        return text
    left, sign, right = spelt.groups()
    if all(side in texts or side.isdigit() for side in (left, right)):
        return f"{left} {'+' if sign == 'plus' else '-'} {right}"
    return text


def _bind(
    level: str,
    shapes: Mapping[str, Shape],
    inputs: Mapping[str, tuple[Dim, ...]],
    listing: str,
) -> dict[str, int]:
    """The value of each symbol that the given shapes determine, plain symbols first."""
    known: dict[str, int] = {}
    pairs: list[tuple[Dim, int]] = []
    for name, shape in shapes.items():
        dims = inputs.get(name)
        if dims is None:
            raise InputError(f"{level} shape for {name!r}, which is no input", listing)
        if len(dims) != len(shape):
            raise InputError(f"{level} shape of {name!r} has {len(shape)} dimensions", listing)
        pairs += zip(dims, shape, strict=True)
    progress = True
    while progress:
        found = {solved[0]: solved[1] for pair in pairs if (solved := _solve(*pair, known))}
        progress = bool(found)
        known |= found
    return known


def _solve(dim: Dim, size: int, known: Mapping[str, int]) -> tuple[str, int] | None:
    """The one symbol of ``dim`` that is open, where ``dim`` is linear in it."""
    if not isinstance(dim, Sym):
        return None
    unknown = sorted(dim.symbols() - known.keys())
    if len(unknown) != 1:
        return None
    try:
        zero, one, two = (dim.evaluate({**known, unknown[0]: value}) for value in range(3))
    except ZeroDivisionError:  # a quotient by the open symbol
        return None
    slope = one - zero
    if slope == 0 or two - one != slope or (size - zero) % slope:
        return None
    return unknown[0], (size - zero) // slope


def _complete(
    inputs: Mapping[str, tuple[Dim, ...]],
    bound: Sequence[Mapping[str, int]],
    longest: int,
    listing: str,
) -> tuple[list[dict[str, int]], tuple[str, ...]]:
    """Values for every symbol at every level, and what was assumed."""
    sizes: list[dict[str, int]] = [{}, {}, {}]
    assumed = []
    limited = " (the model takes no more)" if longest < LONGEST else ""
    for name, axis in _symbols(inputs).items():
        low, usual, high = (level.get(name) for level in bound)
        if low is usual is high is None:
            triple = _BATCH if axis == 0 else (1, min(USUAL, longest), longest)
            assumed.append(
                f"{name} was taken to be {triple[0]} to {triple[2]}, tuned for {triple[1]}"
                f"{limited if axis else ''}; {_OPTIONS} to change that"
            )
        else:
            middle = next(size for size in (usual, high, low) if size is not None)
            triple = (middle if low is None else low, middle, middle if high is None else high)
        if not triple[0] <= triple[1] <= triple[2]:
            raise InputError(
                f"dimension {name!r} has min {triple[0]}, opt {triple[1]}, max {triple[2]}; "
                "want min <= opt <= max",
                listing,
            )
        for level, size in zip(sizes, triple, strict=True):
            level[name] = size
    return sizes, tuple(assumed)


def _symbols(inputs: Mapping[str, tuple[Dim, ...]]) -> dict[str, int]:
    """Every symbol with the smallest axis that it stands on alone; inside sums only: 1."""
    axes: dict[str, int] = {}
    for dims in inputs.values():
        for axis, dim in enumerate(dims):
            if isinstance(dim, Sym):
                for name in sorted(dim.symbols()):
                    own = axis if dim == symbol(name) else 1
                    axes[name] = min(own, axes.get(name, own))
    return axes


def _evaluated(name: str, dims: tuple[Dim, ...], sizes: Mapping[str, int], listing: str) -> Shape:
    try:
        shape = tuple(evaluate(dim, sizes) for dim in dims)
    except ZeroDivisionError:
        shape = (-1,)
    if min(shape) < 0:
        known = ", ".join(f"{key} = {size}" for key, size in sizes.items())
        raise InputError(f"no size fits input {name!r} {_written(dims)} where {known}", listing)
    return shape


def _check_given(
    level: str,
    shapes: Mapping[str, Shape],
    found: Mapping[str, Shape],
    inputs: Mapping[str, tuple[Dim, ...]],
    listing: str,
) -> None:
    """Refuse shapes that give one symbol two sizes, or contradict a fixed dimension."""
    for name, shape in shapes.items():
        fixed = tuple(dim for dim in inputs[name] if isinstance(dim, int))
        expected = found.get(name, fixed)
        if tuple(shape) != expected:
            raise InputError(
                f"{level} shape of {name!r} is {_listed(shape)}, but the model and the other "
                f"shapes make it {_listed(expected)}",
                listing,
            )


def _listed(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _written(dims: Iterable[Dim]) -> str:
    return "[" + ", ".join(str(dim) for dim in dims) + "]"
