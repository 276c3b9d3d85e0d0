"""How far two arrays are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

Array = np.ndarray[Any, Any]

TOLERANCE: dict[int, float] = {
    TensorProto.DOUBLE: 1e-4,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 8e-2,
}
FLOATS = frozenset(TOLERANCE)

# The last finite steps before the limit of a type round to infinity on one side only.
_NEAR_LIMIT = 0.98
_NARROW_ROW = 8
_ROW_FLOOR = 1e-3


@dataclass(frozen=True)
class Difference:
    """What separates ``other`` from ``reference``.

    ``max_rel`` is the largest absolute error over the root mean square of its row (the last
    axis). The rms rather than the maximum, because one outlier in a row would excuse everything
    beside it; rows rather than the whole, because norms and attention scale each row by itself.
    ``rms`` is the root mean square of all errors over that of the reference.
    ``reason`` is set where no number can say it: shape, type, or place of NaN and infinity.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    reason: str = ""
    rms: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether this is a rounding difference."""
        return not self.reason and self.max_rel <= tolerance

    def __str__(self) -> str:
        return self.reason or f"relative error {self.max_rel:.2g}"


def largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number of a floating-point type; its negative is the lowest."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def tolerance(elements: Iterable[int]) -> float:
    """The tolerance of the coarsest of the ONNX element types ``elements``."""
    known = (TOLERANCE.get(element, 0.0) for element in elements)
    return max(known, default=0.0) or TOLERANCE[TensorProto.FLOAT]


def compare(reference: Array, other: Array) -> Difference:
    """Compare two arrays of any shape and type; integers and booleans must be equal."""
    if reference.shape != other.shape:
        return _apart(f"shape {list(other.shape)}, want {list(reference.shape)}")
    if not is_float(reference):
        same = np.array_equal(reference, other)
        return Difference() if same else _apart(f"{_share(reference != other)} values differ")
    if not is_float(other):
        return _apart(f"type {other.dtype}, want {reference.dtype}")
    reason = _non_finite(reference, other)
    if reason:
        return _apart(reason)
    return distance(reference, other)


def distance(reference: Array, other: Array) -> Difference:
    """The distance of two float arrays of one shape where both are finite."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return Difference()
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    error = np.abs(a - b)
    relative = error / _scale(a, finite)
    norms = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    cosine = float((a * b).sum()) / norms if norms > 0 else float(not error.any())
    total = float(np.square(error).sum())
    rms = math.sqrt(total / float((a * a).sum())) if norms > 0 else math.sqrt(total)
    return Difference(float(error.max()), float(relative.max()), min(cosine, 1.0), rms=rms)


def is_float(array: Array) -> bool:
    """Whether the type is a floating-point one, those of ml_dtypes included."""
    return bool(np.issubdtype(array.dtype, np.floating)) or array.dtype.name == "bfloat16"


def is_half(array: Array) -> bool:
    """Whether the type is float16 or bfloat16."""
    return array.dtype.name in ("float16", "bfloat16")


def _scale(reference: Array, finite: Array) -> Array:
    """The divisor of each row's error; ``reference`` is 0 where not ``finite``, 1 divides zeros."""
    whole = math.sqrt(float(np.square(reference).sum()) / int(finite.sum()))
    if whole == 0.0:
        return np.ones(())
    if reference.ndim == 0 or reference.shape[-1] < _NARROW_ROW:
        return np.asarray(whole)
    rows = np.sqrt(np.mean(np.square(reference), axis=-1, keepdims=True))
    scale: Array = np.maximum(rows, _ROW_FLOOR * whole)
    return scale


def _non_finite(reference: Array, other: Array) -> str:
    """Say where NaN and infinity stand in one array and not in the other; empty if nowhere."""
    nan = np.isnan(reference) != np.isnan(other)
    if nan.any():
        having = "the fused form" if np.isnan(other)[nan].any() else "only the original"
        return f"NaN in {_share(nan)} of the values in {having}"
    a, b = _signed_infinity(reference), _signed_infinity(other)
    if (a == b).all():
        return ""
    limits = _side_of_limit(reference), _side_of_limit(other)
    differ = (a != b) & ((limits[0] != limits[1]) | (limits[0] == 0))
    return f"infinity in {_share(differ)} of the values on one side only" if differ.any() else ""


def _signed_infinity(array: Array) -> Array:
    return np.where(np.isinf(array), np.sign(array.astype(np.float32)), 0)


def _side_of_limit(array: Array) -> Array:
    """1 or -1 where a value is infinite or nearly the largest of its type, else 0."""
    limit = _NEAR_LIMIT * largest(array.dtype)
    wide = array.astype(np.float64)
    return np.where(np.abs(wide) >= limit, np.sign(wide), 0)


def _share(flags: Array) -> str:
    return f"{int(flags.sum())} of {flags.size}"


def _apart(reason: str) -> Difference:
    return Difference(math.inf, math.inf, 0.0, reason, math.inf)
