"""How a tensor lies over the ranks, and what becomes of that when axes are split and merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from opfuse.graph.dims import Dim

Indices = np.ndarray

_ONE: Dim = 1


class Stays(Exception):
    """A node that cannot work on a part of its data: the text is the reason."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Each rank has some entries of one axis.

    Attributes:
        axis: The axis, counted from the front.
        parts: For each rank the positions on the whole axis, in the order in which it holds them.
            All ranks have the same number of them. Two ranks may hold the same position, as they
            do where there are fewer key/value heads than ranks.
    """

    axis: int
    parts: tuple[Indices, ...]

    @property
    def local(self) -> int:
        """How many entries each rank has."""
        return len(self.parts[0])

    def on(self, axis: int) -> Shard:
        """The same positions on another axis."""
        return Shard(axis, self.parts)

    def complete(self, size: Dim) -> bool:
        """Whether every rank has all of an axis of this size, in its order."""
        return isinstance(size, int) and all(
            np.array_equal(part, np.arange(size)) for part in self.parts
        )

    def same(self, other: Shard) -> bool:
        """Whether every rank holds the same here and there."""
        return self.axis == other.axis and all(
            np.array_equal(a, b) for a, b in zip(self.parts, other.parts, strict=True)
        )

    def key(self) -> tuple[int, bytes]:
        """A value that is equal for what is the same."""
        return self.axis, b"".join(part.tobytes() for part in self.parts)


def even(axis: int, size: int, ranks: int) -> Shard:
    """Equal blocks, the first to rank 0.

    Raises:
        Stays: The ranks do not divide the size.
    """
    if size % ranks:
        raise Stays(f"{size} do not divide among {ranks} ranks")
    return Shard(axis, tuple(np.split(np.arange(size), ranks)))


def side_by_side(shards: Sequence[Shard], sizes: Sequence[int]) -> Shard:
    """Each rank's parts of tensors of these sizes that lie one behind the other on their axis."""
    starts = np.cumsum([0, *sizes[:-1]])
    parts = tuple(
        np.concatenate([part + start for part, start in zip(parts, starts, strict=True)])
        for parts in zip(*(shard.parts for shard in shards), strict=True)
    )
    return Shard(shards[0].axis, parts)


def static(size: Dim, what: str) -> int:
    """A size that is a number.

    Raises:
        Stays: It is not.
    """
    if isinstance(size, int):
        return size
    raise Stays(f"{what} is {size}, no fixed number")


def reshaped(shard: Shard, old: Sequence[Dim], new: Sequence[Dim]) -> Shard:
    """Where the entries lie once a tensor of shape ``old`` has the shape ``new``.

    The axes that are merged and split together are found from the sizes. In them every rank's
    positions are computed one by one, so a part that is no part of one axis afterwards is seen.

    Raises:
        Stays: They have no fixed sizes, or a rank's part would be no part of one axis.
    """
    (first, last), (start, stop) = _group(shard.axis, old, new)
    sizes = [static(size, "an axis that is merged or split") for size in new[start:stop]]
    before = [static(size, "an axis that is merged or split") for size in old[first:last]]
    if len(sizes) == len(before) == 1:
        return shard.on(start)
    placed = [_flat(before, shard.axis - first, part) for part in shard.parts]
    for axis in range(len(sizes)):
        parts = [_part_of(sizes, axis, flat) for flat in placed]
        found = [part for part in parts if part is not None]
        if len(found) == len(parts):
            return Shard(start + axis, tuple(found))
    text = " x ".join(str(size) for size in (sizes if len(sizes) > 1 else before))
    raise Stays(f"{len(shard.parts)} equal parts would cut through {text}")


def _group(axis: int, old: Sequence[Dim], new: Sequence[Dim]) -> tuple[tuple[int, int], ...]:
    """The axes of both shapes that hold the same elements, around ``axis`` of the old one."""
    cuts = _cuts(old, new)
    low, start = cuts[-1]
    if low < len(old):  # a reshape keeps all elements: what has two names there is the same size
        behind = _cuts(old[low:][::-1], new[start:][::-1])
        cuts += [(len(old) - position, len(new) - match) for position, match in reversed(behind)]
    (low, start), (high, stop) = next(pair for pair in pairwise(cuts) if axis < pair[1][0])
    return (low, high), (start, _last_equal(_totals(new), stop) if high == len(old) else stop)


def _cuts(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[int, int]]:
    """Up to which axes both shapes span as many elements."""
    theirs = _totals(new)
    cuts: list[tuple[int, int]] = []
    at = 0
    for position, total in enumerate(_totals(old)):
        match = next((i for i in range(at, len(theirs)) if theirs[i] == total), None)
        if match is not None:
            cuts.append((position, match))
            at = match
    return cuts


def _totals(sizes: Sequence[Dim]) -> list[Dim]:
    """How many elements the axes up to each one span together."""
    return list(accumulate(sizes, lambda total, size: total * size, initial=_ONE))


def _last_equal(totals: Sequence[Dim], at: int) -> int:
    """Axes of size 1 at the end belong to the last group."""
    return len(totals) - 1 if all(total == totals[at] for total in totals[at:]) else at


def _flat(sizes: Sequence[int], axis: int, part: Indices) -> Indices:
    """The positions in a row-major array of ``sizes`` that a part of one of its axes takes."""
    return np.take(np.arange(int(np.prod(sizes))).reshape(sizes), part, axis).reshape(-1)


def _part_of(sizes: Sequence[int], axis: int, flat: Indices) -> Indices | None:
    """The part of ``axis`` whose positions are ``flat``, in this order, or None."""
    others = int(np.prod(sizes)) // sizes[axis]
    if others == 0 or len(flat) % others:
        return None
    local = [*sizes[:axis], len(flat) // others, *sizes[axis + 1 :]]
    along = flat // int(np.prod(sizes[axis + 1 :], dtype=np.int64)) % sizes[axis]
    part = np.moveaxis(along.reshape(local), axis, 0).reshape(local[axis], -1)[:, 0]
    return part if np.array_equal(_flat(sizes, axis, part), flat) else None
