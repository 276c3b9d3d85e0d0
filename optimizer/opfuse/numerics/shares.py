"""Inputs and outputs of which each rank has a part: taken apart, and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx.helper import np_dtype_to_tensor_dtype

from opfuse.numerics.compare import Array, compare, tolerance
from opfuse.numerics.session import CannotRun

Parts = Mapping[str, tuple[int, Sequence[Array]]]
"""Of a tensor that is given or returned in parts, by name: the axis, and each rank's positions."""


def given(feeds: Mapping[str, Array], parts: Parts, rank: int) -> dict[str, Array]:
    """The inputs of one rank."""
    found = dict(feeds)
    for name in found.keys() & parts.keys():
        axis, positions = parts[name]
        found[name] = np.ascontiguousarray(np.take(found[name], positions[rank], axis))
    return found


def joined(name: str, values: Sequence[Array], parts: Parts) -> Array:
    """The whole of an output that ranks have parts of, from all ranks' ``values``.

    Raises:
        CannotRun: Some of it is nowhere, or ranks that have the same of it are further apart than
            two results within the tolerance of its type.
    """
    axis, positions = parts[name]
    where = np.concatenate(list(positions))
    places, first = np.unique(where, return_index=True)
    if not np.array_equal(places, np.arange(len(places))):
        raise CannotRun(f"no rank has all of output {name!r}")
    whole: Array = np.take(np.concatenate(list(values), axis), first, axis)
    allowed = 2 * tolerance([np_dtype_to_tensor_dtype(whole.dtype)])
    for rank, (own, part) in enumerate(zip(values, positions, strict=True)):
        difference = compare(np.take(whole, part, axis), own)
        if not difference.within(allowed):
            raise CannotRun(f"the ranks do not agree on output {name!r}: rank {rank}, {difference}")
    return whole
