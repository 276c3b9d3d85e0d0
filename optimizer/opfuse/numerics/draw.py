"""Inputs for one match: concrete sizes, ordinary values, and the values that break kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, product
from math import prod

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from opfuse.graph.dims import Dim, Sym, evaluate, is_unknown, symbol
from opfuse.graph.match import TensorSpec
from opfuse.numerics.case import Case, Weight
from opfuse.numerics.compare import FLOATS, Array, is_half, largest
from opfuse.numerics.retype import convert
from opfuse.numerics.roles import Roles

Sizes = Mapping[str, int]

_PRIMES = (7, 5, 11, 13, 3, 17, 19, 23, 29, 31)
_POOL = 1_048_573  # prime, so that no two rows of a tiled weight are equal
_LARGE = (1e2, 1e4)
_SMALL = (1e-4, 1e-2)  # squares about as large as the epsilon of a norm
_WIDE = 8.0
_HEAVY = 16 << 20  # bytes of weights above which every run takes a tenth of a second


@dataclass(frozen=True)
class Setting:
    """One run of a case. ``values`` names how the inputs are drawn: see :func:`inputs`."""

    name: str
    sizes: Sizes
    values: str = "normal"
    own_weights: bool = False

    def __str__(self) -> str:
        return f"{self.name} {dict(self.sizes)}"


Family = tuple[Sizes, Sizes, Sizes]
_LENGTHS = (64, 1024, 16384)
_TRIES = 256
_LARGEST = 1 << 22  # elements of all inputs, where a search for sizes made them so many


def families(specs: Sequence[TensorSpec]) -> Iterator[Family]:
    """Ways to give sizes to the symbols, most telling first: (ordinary, S = 1, batch = 1).

    Sizes that the shape analysis holds for independent may have to be equal after all; only
    running the original tells, hence several families.
    """
    dims = [dim for spec in specs for dim in (*_dims(spec), *(spec.value or ()))]
    symbols = list(dict.fromkeys(name for dim in dims for name in _symbols(dim)))
    leading = {s for spec in specs for dim in (spec.shape or ())[:1] for s in _symbols(dim)}
    batch = [name for name in symbols if name in leading]
    rest = [name for name in symbols if name not in leading]
    primes = dict(zip(rest, chain(_PRIMES, count(37)), strict=False))
    same = dict.fromkeys(rest, 7)
    two, one, ones = dict.fromkeys(batch, 2), dict.fromkeys(batch, 1), dict.fromkeys(rest, 1)
    for others in (primes, same):
        yield {**two, **others}, {**two, **ones}, {**one, **others}
    for named in _totals(dims, rest):
        yield named({**two, **primes}), named({**two, **ones}), named({**one, **primes})
    everything = dict.fromkeys(symbols, 6)
    yield everything, dict.fromkeys(symbols, 1), everything
    large = {**dict.fromkeys(batch, 2), **dict.fromkeys(rest, 64)}
    yield large, large, large
    settled = _settled(specs, large)
    yield settled, settled, settled
    long = [sizes for sizes in _longer(specs, large) if _elements(specs, sizes) <= _LARGEST]
    for sizes in (*long, *chain.from_iterable(_searched(specs, base) for base in (large, *long))):
        yield sizes, sizes, sizes


def _totals(dims: Sequence[Dim], names: Sequence[str]) -> Iterator[Callable[[Sizes], Sizes]]:
    """Yield what gives one of the computed sizes to all ``names`` that none is computed from.

    A mask has a name of its own for the keys, which are those of a cache and the new ones.
    """
    totals = {str(dim): dim for dim in dims if len(_symbols(dim)) > 1}
    parts = {name for dim in totals.values() for name in _symbols(dim)}
    alone = [name for name in names if name not in parts]

    def named(total: Dim, sizes: Sizes) -> Sizes:
        return {**sizes, **dict.fromkeys(alone, evaluate(total, sizes))}

    return (partial(named, total) for total in totals.values() if alone)


def _elements(specs: Sequence[TensorSpec], sizes: Sizes) -> int:
    return sum(prod(evaluate(dim, sizes) for dim in spec.shape or ()) for spec in specs)


def _longer(specs: Sequence[TensorSpec], sizes: Sizes) -> list[Sizes]:
    """Return ``sizes`` with more of what convolutions make shorter, be it the first axis.

    wav2vec 2 makes one frame of 320 samples, and WavLM has the frames in front. Sizes that nothing
    is known of are as many as the frames.
    """
    dims = [dim for spec in specs for dim in spec.shape or ()]
    short = [dim for dim in dims if evaluate(dim, sizes) < 1]
    named = {name for dim in dims for name in _symbols(dim)}
    unknown = [name for name in named if name[0] == "?"]
    enough = {name for dim in dims if dim not in short for name in _symbols(dim)}
    lengthened = {name for dim in short for name in _symbols(dim)} - enough
    found: list[Sizes] = []
    for size in _LENGTHS if lengthened else ():
        longer = {**sizes, **dict.fromkeys(lengthened, size), **dict.fromkeys(unknown, 1)}
        frames = max(evaluate(dim, longer) for dim in short)
        longer |= dict.fromkeys(unknown, frames)
        if all(evaluate(dim, longer) >= 1 for dim in dims):
            found.append(longer)
    return found


def _searched(specs: Sequence[TensorSpec], sizes: Sizes) -> Iterator[Sizes]:
    """Yield ``sizes`` with each axis that nothing is known of as long as one that is known, or 1.

    Slow where there are many, so the last to be tried.
    """
    dims = [dim for spec in specs for dim in spec.shape or ()]
    hidden = [name for dim in dims for name in _symbols(dim) if name[0] == "?"]
    base = {**sizes, **dict.fromkeys(hidden, 1)}  # what is broadcast with 1 stays as it is
    alone = [name for name in dict.fromkeys(hidden) if symbol(name) in dims]
    known = {evaluate(dim, base) for dim in dims if not _symbols(dim) or str(dim) not in alone}
    lengths = sorted({size for size in known if size > 0} | {1}, reverse=True)
    for chosen in islice(product(lengths, repeat=len(alone)), _TRIES) if alone else ():
        yield {**base, **dict(zip(alone, chosen, strict=True))}


def _settled(specs: Sequence[TensorSpec], sizes: Sizes) -> Sizes:
    """``sizes``, with each size that nothing is known of as long as its axis is elsewhere."""
    dims = [dim for spec in specs for dim in spec.shape or ()]
    unknown = [name for dim in dims if is_unknown(dim) for name in _symbols(dim) if name[0] == "?"]
    base = {**sizes, **dict.fromkeys(unknown, 1)}  # what is broadcast with 1 stays as it is
    longest: dict[tuple[int, int], int] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            key = (len(spec.shape or ()), axis)
            longest[key] = max(longest.get(key, 1), evaluate(dim, base))
    settled = dict(base)
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if str(dim) in unknown:
                settled[str(dim)] = longest[len(spec.shape or ()), axis]
    return settled


def settings(case: Case, roles: Roles, family: Family) -> list[Setting]:
    """The runs of a case, the ordinary one first."""
    usual, single, one = family
    runs = [Setting("ordinary", usual), Setting("S = 1", single), Setting("batch 1", one)]
    if is_heavy(case):
        return runs
    if any(weight.values is not None and weight.free for weight in case.weights):
        runs.append(Setting("the model's weights", usual, own_weights=True))
    runs.append(Setting("zeros", usual, "zeros"))
    if roles.scale_free:
        runs.append(Setting("near the type's limit", usual, "large"))
        runs.append(Setting("near zero", usual, "small"))
    if roles.softmax:
        runs.append(Setting("saturated softmax", usual, "wide"))
    else:
        runs.append(Setting("far from zero", usual, "offset"))
    if roles.masks:
        runs.append(Setting("fully masked rows (-inf)", usual, "masked"))
        runs.append(Setting("fully masked rows (lowest)", usual, "lowest"))
    return list({(str(run), run.values, run.own_weights): run for run in runs}.values())


def is_heavy(case: Case) -> bool:
    """Whether the weights are so large that every run costs."""
    return sum(weight.nbytes for weight in case.weights) > _HEAVY


def inputs(case: Case, roles: Roles, setting: Setting, seed: int) -> dict[str, Array]:
    """Draw every input of ``case`` but the weights.

    Float inputs are standard normal, and by ``setting.values``: "zeros"; "offset" far from zero;
    "large" and "small" rows of magnitudes up to 1e4 and down to 1e-4; "wide" 8 times as wide;
    "masked" and "lowest" normal, with -inf or the lowest finite number in whole rows of the
    additive masks, or False in those of the boolean ones.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in case.inputs:
        shape = tuple(evaluate(dim, setting.sizes) for dim in spec.shape or ())
        if spec.value is None:
            feeds[spec.name] = _input(spec, shape, roles, setting, rng)
        else:
            sizes = [evaluate(dim, setting.sizes) for dim in spec.value]
            feeds[spec.name] = typed(np.array(sizes), spec.dtype).reshape(shape)
    return feeds


def weights(case: Case, seed: int, *, own: bool) -> dict[str, Array]:
    """Draw the weights: the model's ``own``, where they are small, or others like them."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for weight in case.weights:
        drawn[weight.name] = _weight(weight, drawn, own, rng)
    return drawn


def rounded(feeds: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Return ``feeds`` with halves in float64, each up to a unit in its last place off.

    That is half a unit for its own rounding and half for that of what is computed of it first. The
    lowest and the largest numbers stay, for these are fills of masks.
    """
    rng = np.random.default_rng(seed)
    moved = dict(feeds)
    for name, array in feeds.items():
        if is_half(array):
            wide = convert(array, TensorProto.DOUBLE)
            unit = float(ml_dtypes.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]
            step = rng.uniform(-unit, unit, wide.shape)
            ordinary = np.abs(wide) < largest(array.dtype)
            moved[name] = np.where(ordinary, wide + np.where(ordinary, wide, 0.0) * step, wide)
    return moved


def typed(values: Array, element: int) -> Array:
    """Cast to an ONNX element type."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(element))


def _dims(spec: TensorSpec) -> tuple[Dim, ...]:
    return (*(spec.shape or ()), *(spec.value or ()))


def _symbols(dim: Dim) -> list[str]:
    return sorted(dim.symbols()) if isinstance(dim, Sym) else []


def _input(
    spec: TensorSpec,
    shape: tuple[int, ...],
    roles: Roles,
    setting: Setting,
    rng: np.random.Generator,
) -> Array:
    if spec.value is not None:
        sizes = [evaluate(dim, setting.sizes) for dim in spec.value]
        return typed(np.array(sizes).reshape(shape), spec.dtype)
    masked = spec.name in roles.masks and setting.values in ("masked", "lowest")
    if spec.dtype == TensorProto.BOOL:
        flags = rng.random(shape) < 0.7
        return _hide_rows(flags, False) if masked else _keep_one(flags)
    if spec.dtype not in FLOATS:
        bound = roles.bounds.get(spec.name, 2)
        return typed(rng.integers(0, bound, shape), spec.dtype)
    drawn = _floats(shape, setting.values, rng, mask=spec.name in roles.masks)
    if masked:
        limit = largest(helper.tensor_dtype_to_np_dtype(spec.dtype))
        lowest = -np.inf if setting.values == "masked" else -limit
        hidden = np.where(rng.random(shape) < 0.3, lowest, drawn)
        drawn = _hide_rows(hidden, lowest)
    return typed(drawn, spec.dtype)


def _floats(shape: tuple[int, ...], values: str, rng: np.random.Generator, *, mask: bool) -> Array:
    normal = rng.standard_normal(shape)
    if values == "zeros":
        return np.zeros(shape)
    if mask:
        return normal
    if values == "offset":
        return normal + 10.0
    if values == "wide":
        return normal * _WIDE
    if values in ("large", "small") and shape:
        low, high = np.log10(_LARGE if values == "large" else _SMALL)
        return np.clip(normal, -3, 3) * 10.0 ** rng.uniform(low, high, (*shape[:-1], 1))
    return normal


def _hide_rows(mask: Array, hidden: object) -> Array:
    """Every second row of the last axis, the first among them."""
    rows = mask.reshape(-1, mask.shape[-1]) if mask.ndim else mask.reshape(1, 1)
    rows[::2] = hidden
    masked: Array = rows.reshape(mask.shape)
    return masked


def _keep_one(flags: Array) -> Array:
    """No row of a boolean mask is False throughout."""
    if flags.ndim and flags.shape[-1]:
        flags[..., 0] = True
    return flags


def _weight(
    weight: Weight, feeds: Mapping[str, Array], own: bool, rng: np.random.Generator
) -> Array:
    if weight.joined:
        return np.concatenate([feeds[name] for name in weight.joined], weight.axis)
    if weight.values is None:
        fan_in = weight.shape[-2] if len(weight.shape) > 1 else 1
        pool = rng.standard_normal(min(_POOL, prod(weight.shape)), np.float32) / np.sqrt(fan_in)
        return np.resize(typed(pool, weight.element), weight.shape)
    values = weight.values.array()
    return values if own or not weight.free else typed(_vary(values, rng), weight.element)


def _vary(values: Array, rng: np.random.Generator) -> Array:
    """Other values of the same kind: similar magnitudes and signs, zeros and ones no longer so."""
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    factor, noise = rng.uniform(0.5, 1.5, wide.shape), rng.standard_normal(wide.shape)
    limit = largest(values.dtype)
    varied = np.clip(wide * factor, -limit, limit)
    return np.where(np.isfinite(wide), varied, wide) + 0.05 * (rms or 2.0) * noise
