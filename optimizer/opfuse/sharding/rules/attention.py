"""Attention and what stands in it: every head by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opfuse.sharding.layout import Indices, Shard, Stays
from opfuse.sharding.rules.base import Local, Rule, View, only

_HEADS = 1  # the axis of q, k, v, and the mask in [batch, heads, sequence, size]


def _flash_attention(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard = only(wanted)
    heads = int(view.node.attrs["num_heads"])
    few = int(view.node.attrs["kv_num_heads"])
    layout = view.node.attrs.get("layout", "BHSD")
    if shard.axis != _HEADS or len(view.result()) != 4 or layout != "BHSD":
        raise Stays("it can be split by heads only")
    if view.node.attrs.get("slopes"):
        raise Stays("its slopes are one number of each head")
    if view.shape(0)[_HEADS] != heads or view.shape(1)[_HEADS] != few or heads % few:
        raise Stays(f"its {heads} heads and {few} key/value heads are not those of its operands")
    keys = Shard(_HEADS, _key_heads(shard.parts, heads // few))
    inputs: list[Shard | None] = [shard, keys, keys]
    counted = bool(view.node.attrs.get("lengths"))
    if len(view.node.inputs) > 3 + counted:
        inputs.append(view.aligned(3, shard, 4, heads))
    inputs += [None] * counted  # the lengths are those of all heads
    attrs = {"num_heads": shard.local, "kv_num_heads": keys.local}
    return Local(tuple(inputs), attrs)


def _key_heads(parts: tuple[Indices, ...], group: int) -> tuple[Indices, ...]:
    """The key/value heads of each rank's query heads.

    Each once where the ranks have as many of them with groups of one size; else one for each query
    head, so that a rank whose query heads lie across two groups of different sizes is right too.
    """
    every = tuple(part // group for part in parts)
    once = tuple(np.unique(part) for part in every)
    count = len(once[0])
    if all(len(part) == count for part in once) and len(every[0]) % count == 0:
        copies = len(every[0]) // count
        pairs = zip(every, once, strict=True)
        if all(np.array_equal(whole, np.repeat(part, copies)) for whole, part in pairs):
            return once
    return every


def _rope(view: View, wanted: Sequence[Shard | None]) -> Local:
    """Turns the last axis by angles that are broadcast over the others."""
    shard, shape = only(wanted), view.result()
    if shard.axis == len(shape) - 1:
        raise Stays("it turns the features of a head together")
    size = shape[shard.axis]
    angles = [view.aligned(i, shard, len(shape), size) for i in range(1, len(view.node.inputs))]
    counted = shard.axis == _HEADS and view.node.attrs.get("num_heads", 0)
    attrs = {"num_heads": shard.local} if counted else {}
    return Local((shard, *angles), attrs)


def _rotary(view: View, wanted: Sequence[Shard | None]) -> Local:
    """ONNX's RotaryEmbedding: all heads are turned by the same angles."""
    shard = only(wanted)
    if shard.axis != _HEADS or len(view.result()) != 4:
        raise Stays("it can be split by heads only")
    inputs = view.whole()
    inputs[0] = shard
    attrs = {"num_heads": shard.local} if view.node.attrs.get("num_heads", 0) else {}
    return Local(tuple(inputs), attrs)


def _softmax(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard = only(wanted)
    if shard.axis == view.axis(-1, len(view.result())):
        raise Stays("it sums over the axis that is split")
    return Local((shard,))


def _masked_softmax(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard, shape = only(wanted), view.result()
    if shard.axis >= len(shape) - 2:
        raise Stays("it needs all queries and keys of a head")
    size = shape[shard.axis]
    count = range(1, len(view.node.inputs))
    return Local((shard, *(view.aligned(i, shard, len(shape), size) for i in count)))


RULES: dict[str, Rule] = {
    "FlashAttention": _flash_attention,
    "Rope": _rope,
    "RotaryEmbedding": _rotary,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "MaskedSoftmax": _masked_softmax,
}
