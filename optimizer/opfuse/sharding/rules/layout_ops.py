"""Operators that only move data: axes are turned, merged, split, joined, and picked from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opfuse.sharding.layout import Shard, Stays, reshaped, side_by_side, static
from opfuse.sharding.rules.base import Local, Rule, View, only


def _transpose(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard = only(wanted)
    rank = len(view.result())
    perm = view.node.attrs.get("perm") or list(reversed(range(rank)))
    return Local((shard.on(int(perm[shard.axis])),))


def _reshape(view: View, wanted: Sequence[Shard | None]) -> Local:
    """The sizes it is given are the whole's; that of the split axis becomes the rank's."""
    shard = only(wanted)
    part = reshaped(shard, view.result(), view.shape())
    sizes = view.facts.value(view.node.inputs[1])
    if part.axis != shard.axis and (
        sizes is None or (part.axis < len(sizes) and sizes[part.axis] == 0)
    ):
        raise Stays("it may copy the size of the axis that is split to another one")
    return Local((part, None), sizes={1: {shard.axis: shard.local}})


def _regroup(view: View, wanted: Sequence[Shard | None]) -> Local:
    """Squeeze, Unsqueeze, and Flatten name axes, not sizes."""
    inputs = view.whole()
    inputs[0] = reshaped(only(wanted), view.result(), view.shape())
    return Local(tuple(inputs))


def _split(view: View, wanted: Sequence[Shard | None]) -> Local:
    """Along another axis all results are wanted alike; along this one each has its own part."""
    axis = view.axis(0, len(view.shape()))
    given = [shard for shard in wanted if shard is not None]
    inputs = view.whole()
    if given[0].axis != axis:
        every = len(given) == len(wanted) or view.alone
        if not every or not all(shard.same(given[0]) for shard in given):
            raise Stays("its results are wanted in different parts")
        inputs[0] = given[0]
        return Local(tuple(inputs))
    if any(shard.axis != axis for shard in given):
        raise Stays("its results are split along different axes")
    sizes = [static(view.result(i)[axis], "a result") for i in range(len(wanted))]
    own = [
        shard or Shard(axis, (np.arange(size),) * view.ranks)
        for shard, size in zip(wanted, sizes, strict=True)
    ]
    inputs[0] = side_by_side(own, sizes)
    local = {index: shard.local for index, shard in enumerate(own)}
    if view.has(1):
        return Local(tuple(inputs), sizes={1: local})
    if len(set(local.values())) > 1:
        raise Stays("its results would be of different sizes, and it splits equally")
    return Local(tuple(inputs))


def _concat(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard = only(wanted)
    axis = view.axis(0, len(view.result()))
    count = len(view.node.inputs)
    if shard.axis != axis:
        return Local((shard,) * count)
    inputs: list[Shard | None] = []
    start = 0
    for index in range(count):
        size = static(view.shape(index)[axis], "what it joins")
        own = [part[(part >= start) & (part < start + size)] - start for part in shard.parts]
        if len({len(part) for part in own}) > 1 or not len(own[0]):
            raise Stays("the ranks would take different amounts of what it joins")
        inputs.append(Shard(axis, tuple(own)))
        start += size
    if any((np.diff(_owner(view, axis, part)) < 0).any() for part in shard.parts):
        raise Stays("a rank would take what it joins in another order")
    return Local(tuple(inputs))


def _owner(view: View, axis: int, part: np.ndarray) -> np.ndarray:
    sizes = [static(view.shape(i)[axis], "what it joins") for i in range(len(view.node.inputs))]
    return np.searchsorted(np.cumsum(sizes), part, side="right")


def _slice(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard, rank = only(wanted), len(view.shape())
    axes = view.numbers(3) if view.has(3) else list(range(view.shape(1)[0]))  # type: ignore[arg-type]
    if shard.axis in [axis % rank for axis in axes]:
        raise Stays("it cuts out of the axis that is split")
    inputs = view.whole()
    inputs[0] = shard
    return Local(tuple(inputs))


def _gather(view: View, wanted: Sequence[Shard | None]) -> Local:
    """Picks along one axis: the others are those of the data, those of the indices between."""
    shard = only(wanted)
    axis, extra = view.axis(0, len(view.shape())), len(view.shape(1))
    if shard.axis < axis:
        return Local((shard, None))
    if shard.axis < axis + extra:
        return Local((None, shard.on(shard.axis - axis)))
    return Local((shard.on(shard.axis - extra + 1), None))


def _expand(view: View, wanted: Sequence[Shard | None]) -> Local:
    """One entry becomes many of the same, or stays the one it is."""
    shard, shape = only(wanted), view.result()
    part = view.aligned(0, shard, len(shape), shape[shard.axis])
    at = shard.axis - (len(shape) - static(view.shape(1)[0], "its number of axes"))
    return Local((part, None), sizes={1: {at: shard.local}} if at >= 0 else {})


RULES: dict[str, Rule] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _regroup,
    "Unsqueeze": _regroup,
    "Flatten": _regroup,
    "Split": _split,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
}
