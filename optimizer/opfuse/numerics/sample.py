"""Inputs for a whole model, made from nothing but its graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from onnx import GraphProto, ValueInfoProto

from opfuse.graph.dims import Dim, Sym, evaluate, parse, symbol
from opfuse.numerics.compare import FLOATS, Array
from opfuse.numerics.draw import typed
from opfuse.numerics.roles import LAST_KEY, Flow

Sizes = Mapping[str, int]

_STEPS = 1000
_PRIMES = (7, 5, 11, 13, 3, 17, 19)
_WORDS = {"plus": "+", "minus": "-", "times": "*"}
_WORD = re.compile(rf"_({'|'.join(_WORDS)})_")


@dataclass(frozen=True)
class Input:
    """A graph input.

    Attributes:
        bound: The length of the table that it indexes, 0 if none.
        counted: Which keys of a GroupQueryAttention it tells: see :meth:`Flow.counted_at`.
    """

    name: str
    element: int
    shape: tuple[Dim, ...]
    bound: int = 0
    counted: int = 0


def inputs(graph: GraphProto) -> tuple[Input, ...]:
    """The inputs that a caller has to give.

    Raises:
        ValueError: One is not a tensor of known rank.
    """
    stored = {tensor.name for tensor in graph.initializer}
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    flow = Flow(graph)
    return tuple(
        _input(info, flow.bound(info.name, tables) or 0, flow.counted_at(info.name))
        for info in graph.input
        if info.name not in stored
    )


def assignments(
    items: Sequence[Input], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> list[Sizes]:
    """Sizes for the symbols, the most telling first, all ones last; ``shapes`` fixes some.

    Exporters give one size several names, and name a sum of sizes as if it were free, so which of
    these a model takes shows only when it runs.

    Raises:
        ValueError: ``shapes`` names no input, or does not fit its rank or its fixed sizes.
    """
    fixed = _fixed(items, shapes or {})
    found = {str(sizes): sizes for sizes in ({**free, **fixed} for free in _guesses(items))}
    return list(found.values())


def _guesses(items: Sequence[Input]) -> Iterator[Sizes]:
    symbols, leading = _symbols(items), _leading(items)
    batch = dict.fromkeys((s for s in symbols if s in leading), 2)
    rest = [s for s in symbols if s not in leading]
    primes = dict(zip(rest, chain(_PRIMES, count(23)), strict=False))
    totals = _totals(items, rest)
    others = [size for name, size in primes.items() if name not in totals]
    summed = {**primes, **dict.fromkeys(totals, sum(others))}
    plus_one = {name: size + 1 for name, size in zip(totals, others, strict=False)}
    yield {**batch, **primes}
    yield {**batch, **dict.fromkeys(rest, 8)}
    yield {**batch, **summed}
    yield {**batch, **primes, **plus_one}
    for size in (1, 32, 64, 224):
        yield {**batch, **dict.fromkeys(rest, size)}
    yield from singles(items)


def singles(items: Sequence[Input]) -> list[Sizes]:
    """All sizes 1, but for those that may be sums of others: these are 1 in the last."""
    symbols = _symbols(items)
    ones = dict.fromkeys(symbols, 1)
    leading = _leading(items)
    inner = [s for s in symbols if s not in leading]
    totals = _totals(items, inner)
    summed = {**ones, **dict.fromkeys(totals, max(1, len(inner) - len(totals)))}
    return [ones] if summed == ones else [summed, ones]


def _symbols(items: Sequence[Input]) -> list[str]:
    return list(dict.fromkeys(s for item in items for dim in item.shape for s in _names(dim)))


def _leading(items: Sequence[Input]) -> set[str]:
    return {s for item in items for dim in item.shape[:1] for s in _names(dim)}


def _fixed(items: Sequence[Input], shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    """The sizes that ``shapes`` gives to symbols that stand alone."""
    by_name = {item.name: item for item in items}
    fixed: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name or len(shape) != len(by_name[name].shape):
            raise ValueError(f"there is no input {name} of rank {len(shape)}")
        for dim, size in zip(by_name[name].shape, shape, strict=True):
            if isinstance(dim, Sym) and dim == symbol(_names(dim)[0]):
                fixed[_names(dim)[0]] = size
            elif isinstance(dim, int) and dim != size:
                raise ValueError(f"input {name} has {dim} where {size} is wanted")
    return fixed


def draw(items: Sequence[Input], sizes: Sizes, seed: int) -> dict[str, Array]:
    """Draw every input: floats standard normal, indices below their bound, the rest as named.

    Steps of a diffusion are drawn from all of the usual thousand: their angles differ as theirs do.
    """
    rng = np.random.default_rng(seed)
    past = _past(items, sizes)
    drawn = {}
    for item in items:
        shape = tuple(evaluate(d, sizes) for d in item.shape)
        if item.counted:
            values = _counted(item, shape, past, _new(items, sizes))
        else:
            values = _values(item, shape, past, rng)
        drawn[item.name] = values
    return drawn


def dimension(text: str) -> Dim:
    """Read a ``dim_param``; ``past_plus_1`` is what torch writes where no operator is allowed."""
    return parse(_WORD.sub(lambda word: f" {_WORDS[word[1]]} ", text))


def _input(info: ValueInfoProto, bound: int, counted: int) -> Input:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ValueError(f"input {info.name} is not a tensor of known rank")
    shape = tuple(
        int(dim.dim_value)
        if dim.HasField("dim_value")
        else dimension(dim.dim_param)
        if dim.dim_param
        else symbol(f"{info.name}.{axis}")
        for axis, dim in enumerate(kind.shape.dim)
    )
    return Input(info.name, kind.elem_type, shape, bound, counted)


def _names(dim: Dim) -> list[str]:
    return sorted(dim.symbols()) if isinstance(dim, Sym) else []


def _totals(items: Sequence[Input], symbols: Sequence[str]) -> list[str]:
    """Symbols that may be sums: those of masks only, and those that are called so."""
    elsewhere = {
        s for item in items if not _is_mask(item) for dim in item.shape for s in _names(dim)
    }
    return [s for s in symbols if s not in elsewhere or "total" in s]


def _past(items: Sequence[Input], sizes: Sizes) -> int:
    """How many positions come before the first: the length of the cache that is fed."""
    lengths = [
        evaluate(item.shape[2], sizes)
        for item in items
        if item.element in FLOATS and len(item.shape) == 4 and isinstance(item.shape[2], Sym)
    ]
    return min(lengths, default=0)


def _new(items: Sequence[Input], sizes: Sizes) -> tuple[int, int]:
    """How many sequences there are, and new positions: those of ids or of what they stand for."""
    shapes = [item.shape for item in items if len(item.shape) in (2, 3)]
    known = [(evaluate(shape[0], sizes), evaluate(shape[1], sizes)) for shape in shapes]
    return min(known, default=(1, 1), key=lambda pair: pair[1])


def _counted(item: Input, shape: tuple[int, ...], past: int, new: tuple[int, int]) -> Array:
    """All keys of each sequence: what is behind fewer, GroupQueryAttention leaves unspecified.

    It takes several new positions of several sequences only where nothing is before them.
    """
    batch, count = new
    keys = count if batch > 1 and count > 1 else past + count
    if len(shape) > 1:
        return typed(np.ones(shape), item.element)
    return typed(np.full(shape, keys - (item.counted == LAST_KEY)), item.element)


def _values(item: Input, shape: tuple[int, ...], past: int, rng: np.random.Generator) -> Array:
    if "timestep" in item.name and not item.bound:
        return typed(rng.integers(0, _STEPS, shape), item.element)
    if item.element in FLOATS:
        return typed(rng.standard_normal(shape), item.element)
    if item.bound:
        return typed(_indices(item, shape, past, rng), item.element)
    if "position" in item.name:
        return typed(_positions(shape, past), item.element)
    return typed(_padding(shape, rng), item.element)


def _indices(item: Input, shape: tuple[int, ...], past: int, rng: np.random.Generator) -> Array:
    if "position" in item.name:
        return np.minimum(_positions(shape, past), item.bound - 1)
    return rng.integers(0, item.bound, shape)


def _positions(shape: tuple[int, ...], past: int) -> Array:
    steps = np.arange(past, past + shape[-1]) if shape else np.array(past)
    return np.broadcast_to(steps, shape)


def _padding(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ones, with zeros at the end of every row of the last axis but the first."""
    mask = np.ones(shape, np.int64)
    if mask.ndim and shape[-1] > 2:
        rows = mask.reshape(-1, shape[-1])
        for row in rows[1:]:
            row[-int(rng.integers(1, 3)) :] = 0
    return mask


def _is_mask(item: Input) -> bool:
    return item.element not in FLOATS and item.bound == 0 and "position" not in item.name
