"""Rotary position embedding and its tables, as they are and broken."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzzing.plans import HEADS, HIDDEN, Plan
from benchmarks.fuzzing.writer import Tensor, Writer

_SIZE = HIDDEN // HEADS


def tables(
    w: Writer, plan: Plan, names: dict[str, str], *, whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [batch, 1, seq, size], of half the size for a rope by parts.

    For the standard operator, ``whole``, they are [batch, seq, size / 2].
    """
    positions = w.input("position_ids", np.int64, [names["batch"], names["seq"]])
    inverse = (100.0 ** (-np.arange(0, _SIZE, 2) / _SIZE)).astype(np.float32)
    wide = w.cast(w.op("Unsqueeze", positions, [2], rank=3), np.float32)
    if w.pick(True, False):
        angles = w.both("Mul", wide, inverse.reshape(1, 1, -1))
    else:
        angles = w.op("MatMul", wide, inverse.reshape(1, 1, -1))
    if whole:
        return w.cast(w.op("Cos", angles), w.dtype), w.cast(w.op("Sin", angles), w.dtype)
    if plan.rope == "half":
        angles = w.op("Concat", angles, angles, axis=w.pick(-1, 2))
    if plan.rope == "pairs":
        doubled = w.op("Unsqueeze", angles, [3], rank=4)
        doubled = w.op("Concat", doubled, doubled, axis=-1)
        angles = w.op("Reshape", doubled, [0, 0, _SIZE], rank=3)
    first = w.pick(True, False)
    if first:
        angles = w.op("Unsqueeze", angles, [1], rank=4)
    cos, sin = w.op("Cos", angles), w.op("Sin", angles)
    if not first:
        cos, sin = (w.op("Unsqueeze", table, [1], rank=4) for table in (cos, sin))
    cos, sin = w.cast(cos, w.dtype), w.cast(sin, w.dtype)
    if w.breaks.here("cosines and sines swapped"):
        cos, sin = sin, cos
    return cos, sin


def rope(w: Writer, kind: str, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [batch, heads, seq, size]."""
    cos, sin = cos_sin
    if kind == "parts":
        return _parts(w, x, cos, sin)
    if kind == "pairs" or w.breaks.here("pairs instead of halves"):
        turned = _pairs(w, x)
    else:
        turned = _halves(w, x)
    if w.breaks.here("a sign flipped"):
        return w.op("Sub", w.op("Mul", x, cos), w.op("Mul", turned, sin))
    return w.both("Add", w.both("Mul", x, cos), w.both("Mul", turned, sin))


def rope_whole(w: Writer, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [batch, heads, seq, size] by halves with the standard operator."""
    if w.breaks.here("the interleaved flag swapped"):
        return w.op("RotaryEmbedding", x, *cos_sin, rank=4, interleaved=1)
    return w.op("RotaryEmbedding", x, *cos_sin, rank=4)


def _halves(w: Writer, x: Tensor) -> Tensor:
    half = _SIZE // 2
    if w.breaks.here("parts of unequal length"):
        half = 1
    low, high = _apart(w, x, half)
    if w.breaks.here("halves swapped"):
        low, high = high, low
    if w.breaks.here("the other half negated"):
        return w.op("Concat", high, w.op("Neg", low), axis=-1)
    return w.op("Concat", w.op("Neg", high), low, axis=w.pick(-1, 3))


def _apart(w: Writer, x: Tensor, half: int) -> list[Tensor]:
    if w.pick(False, True):
        return w.split("Split", [x, [half, _SIZE - half]], 2, axis=w.pick(-1, 3))
    return [w.slice(x, 0, half, last=False), w.slice(x, half, _SIZE, last=True)]


def _pairs(w: Writer, x: Tensor) -> Tensor:
    last = int(np.iinfo(np.int64).max)
    axis = [w.pick(-1, 3)]
    even, odd = (w.op("Slice", x, [start], [w.pick(last, _SIZE)], axis, [2]) for start in (0, 1))
    if w.breaks.here("even and odd swapped"):
        even, odd = odd, even
    parts = [w.op("Unsqueeze", t, w.pick([-1], [4]), rank=5) for t in (w.op("Neg", odd), even)]
    both = w.op("Concat", *parts, axis=w.pick(-1, 4))
    if w.pick(True, False):
        return w.op("Reshape", both, w.op("Shape", x, rank=1), rank=4)
    return w.op("Reshape", both, [0, 0, 0, _SIZE], rank=4)


def _parts(w: Writer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = _apart(w, x, _SIZE // 2)
    order = "Add" if w.breaks.here("a sign flipped") else "Sub"
    first = w.op(order, w.both("Mul", a, cos), w.both("Mul", b, sin))
    second = w.both("Add", w.both("Mul", b, cos), w.both("Mul", a, sin))
    if w.breaks.here("halves swapped"):
        first, second = second, first
    return w.op("Concat", first, second, axis=w.pick(-1, 3))
