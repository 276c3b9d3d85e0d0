"""GroupNorm and SiLU of an image, [batch, channels, height, width], as they are and broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.fuzzing.norms import silu
from benchmarks.fuzzing.writer import Tensor, Writer

CHANNELS, _GROUPS = 6, 3


def image(w: Writer, names: dict[str, str], weights: Callable[..., np.ndarray]) -> Tensor:
    """Write silu(group_norm(image))."""
    x = w.input("image", w.dtype, [names["batch"], CHANNELS, names["seq"], 3])
    gamma, beta = weights("group.gamma", CHANNELS, mean=1.0), weights("group.beta", CHANNELS)
    if w.opset >= 21 and w.pick(False, True):
        parts = (w.constant(values, w.dtype) for values in (gamma, beta))
        y = w.op("GroupNormalization", x, *parts, rank=4, num_groups=_GROUPS, epsilon=1e-5)
    else:
        y = _written_out(w, x, gamma, beta)
    return silu(w, y)


def _written_out(w: Writer, x: Tensor, gamma: np.ndarray, beta: np.ndarray) -> Tensor:
    grouped = w.op("Reshape", x, [0, _GROUPS, -1], rank=3)
    ones, zeros = np.ones(_GROUPS, w.dtype), np.zeros(_GROUPS, w.dtype)
    if w.breaks.here("a scale of one group"):
        ones[1] = 1.5
    if w.breaks.here("a shift of one group"):
        zeros[1] = 0.5
    weights = (w.constant(values, w.dtype) for values in (ones, zeros))
    unit = w.op("InstanceNormalization", grouped, *weights, rank=3, epsilon=1e-5)
    y = w.op("Reshape", unit, w.op("Shape", x, rank=1), rank=4)
    shape = w.pick((CHANNELS, 1, 1), (1, CHANNELS, 1, 1))
    if w.breaks.here("a weight of each column"):
        gamma, shape = gamma[:3], (1, 1, 3)
        scaled = w.both("Mul", y, w.constant(gamma.reshape(shape), w.dtype))
        return w.both("Add", scaled, w.constant(beta.reshape(CHANNELS, 1, 1), w.dtype))
    scaled = w.both("Mul", y, w.constant(gamma.reshape(shape), w.dtype))
    return w.both("Add", scaled, w.constant(beta.reshape(shape), w.dtype))
