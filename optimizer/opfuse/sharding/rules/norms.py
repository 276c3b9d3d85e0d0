"""Norms and sums: over axes that are whole on every rank, such as the features of a head."""

from __future__ import annotations

from collections.abc import Sequence

from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.rules.base import Local, Rule, View, only

_WHOLE = "it needs all features of a token"


def _norm(view: View, wanted: Sequence[Shard | None]) -> Local:
    """Over the axes from ``axis`` on, scaled by weights of those axes."""
    shard, shape = only(wanted), view.result()
    if shard.axis >= view.axis(-1, len(shape)):
        raise Stays(_WHOLE)
    size = shape[shard.axis]
    count = range(1, len(view.node.inputs))
    return Local((shard, *(view.aligned(i, shard, len(shape), size) for i in count)))


def _reduce(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard, rank = only(wanted), len(view.shape())
    given = view.node.attrs.get("axes")
    if given is None and view.has(1):
        given = view.numbers(1)
    axes = [int(axis) % rank for axis in given or range(rank)]
    if not view.node.attrs.get("keepdims", 1):
        left = [axis for axis in range(rank) if axis not in axes]
        shard = shard.on(left[shard.axis])
    if shard.axis in axes:
        raise Stays("it sums over the axis that is split")
    inputs = view.whole()
    inputs[0] = shard
    return Local(tuple(inputs))


def _whole(view: View, wanted: Sequence[Shard | None]) -> Local:
    raise Stays(_WHOLE)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("RmsNorm", "RMSNormalization", "LayerNormalization"), _norm),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduce),
    **dict.fromkeys(("AddRmsNorm", "AddLayerNorm"), _whole),
}
