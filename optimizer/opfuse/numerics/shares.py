"""Inputs and outputs of which each rank has a part: taken apart, and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opfuse.numerics.compare import Array
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
        CannotRun: Some of it is nowhere.
    """
    axis, positions = parts[name]
    where = np.concatenate(list(positions))
    whole, first = np.unique(where, return_index=True)
    if not np.array_equal(whole, np.arange(len(whole))):
        raise CannotRun(f"no rank has all of output {name!r}")
    return np.take(np.concatenate(list(values), axis), first, axis)
