"""Operators that compute every entry from the entries at its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.rules.base import Local, Rule, View, only

_BROADCAST = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Mod", "Where", "PRelu"),
    *("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *("Abs", "Neg", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Sign", "Floor", "Ceil", "Round"),
    *("Sin", "Cos", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus"),
    *("Softsign", "HardSigmoid", "HardSwish", "Gelu", "Swish", "Mish", "ThresholdedRelu"),
    *("Identity", "Cast", "IsNaN", "IsInf"),
)
_FIRST = ("Clip", "CastLike")  # the other inputs are single values, or only lend their type


def _broadcast(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard, shape = only(wanted), view.result()
    size = shape[shard.axis]
    count = range(len(view.node.inputs))
    return Local(tuple(view.aligned(i, shard, len(shape), size) for i in count))


def _first(view: View, wanted: Sequence[Shard | None]) -> Local:
    inputs = view.whole()
    inputs[0] = only(wanted)
    return Local(tuple(inputs))


def _gated(view: View, wanted: Sequence[Shard | None]) -> Local:
    """GatedAct: with one input, gate and up are the halves of its last axis."""
    shard, shape = only(wanted), view.result()
    if len(view.node.inputs) > 1:
        return _broadcast(view, wanted)
    last = len(shape) - 1
    if shard.axis != last:
        return Local((shard,))
    size = shape[last]
    if not isinstance(size, int):
        raise Stays("its number of features is not fixed")
    parts = tuple(np.concatenate([part, part + size]) for part in shard.parts)
    return Local((Shard(last, parts),))


RULES: dict[str, Rule] = {
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_FIRST, _first),
    "GatedAct": _gated,
}
