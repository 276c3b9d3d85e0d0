"""x @ W for a weight that is too large to be read at once."""

from __future__ import annotations

import mmap

import numpy as np

from opfuse.numerics.compare import Array
from opfuse.numerics.stored import Joined, Stored

_BLOCK = 32 << 20  # bytes of the weight in memory at a time


def matmul(x: Array, weight: Stored, *, transposed: bool) -> Array:
    """``x @ W``, or ``x @ W.T``, accumulated in float32 (float64 for float64).

    Args:
        x: [..., rows], or [..., cols] if transposed.
        weight: [rows, cols].
        transposed: Whether the weight enters transposed.

    Returns:
        [..., cols], or [..., rows] if transposed, in the type of ``x``.
    """
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    return _product(wide, weight, transposed).astype(x.dtype)


def _product(x: Array, weight: Stored, transposed: bool) -> Array:
    if not isinstance(weight, Joined):
        return _blocks(x, weight, transposed)
    along_result = (weight.axis == 0) == transposed
    if along_result:
        return np.concatenate([_product(x, part, transposed) for part in weight.parts], -1)
    ends = np.cumsum([part.shape[weight.axis] for part in weight.parts])
    pieces = np.split(x, ends[:-1], axis=-1)
    products = [_product(p, w, transposed) for p, w in zip(pieces, weight.parts, strict=True)]
    return np.asarray(sum(products))


def _blocks(x: Array, weight: Stored, transposed: bool) -> Array:
    rows, cols = weight.shape
    values = weight.array()
    step = max(1, _BLOCK * rows // max(1, weight.nbytes))
    result = np.zeros((*x.shape[:-1], rows if transposed else cols), x.dtype)
    for start in range(0, rows, step):
        block = values[start : start + step].astype(x.dtype)
        if transposed:
            result[..., start : start + step] = x @ block.T
        else:
            result += x[..., start : start + step] @ block
        forget(values)
    return result


def forget(values: Array) -> None:
    """Give the pages of a mapped array that were read back to the system."""
    base = getattr(values, "_mmap", None)
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
