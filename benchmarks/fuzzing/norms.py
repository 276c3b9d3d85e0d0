"""Norms and activations, as they are and broken."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzzing.plans import HIDDEN
from benchmarks.fuzzing.writer import Tensor, Writer

_WIDE = np.dtype(np.float32)


def rms_norm(w: Writer, x: Tensor, gamma: np.ndarray, *, plus_one: bool = False) -> Tensor:
    """RMSNorm over the last axis, computed in fp32; its weight is gamma, or gamma + 1."""
    gamma = _gamma(w, gamma)
    if not plus_one and w.opset >= 23 and w.pick(False, False, True):
        return w.op("RMSNormalization", x, w.constant(gamma, w.dtype), axis=-1, epsilon=1e-5)
    wide = w.cast(x, _WIDE)
    if w.breaks.here("epsilon before the square"):
        wide = w.op("Add", wide, 1e-2)
    mean = _mean(w, _square(w, wide))
    unit = _over_root(w, wide, mean)
    late = w.dtype != _WIDE and w.pick(False, True)
    weight = w.constant(gamma, w.dtype)
    if plus_one:
        weight = w.both("Add", w.cast(weight, _WIDE) if late else weight, 1.0)
    if late:
        return w.cast(w.both("Mul", unit, w.cast(weight, _WIDE)), w.dtype)
    return w.both("Mul", w.cast(unit, w.dtype), weight)


def plain_norm(w: Writer, kind: str, x: Tensor) -> Tensor:
    """A norm without weights; a LayerNorm may have ones for them."""
    if kind == "layer" and w.opset >= 17 and w.pick(False, True):
        ones = w.constant(np.ones(HIDDEN, w.dtype), w.dtype)
        return w.op("LayerNormalization", x, ones, axis=w.pick(-1, x.rank - 1), epsilon=1e-5)
    wide = w.cast(x, _WIDE)
    if kind == "layer":
        wide = w.op("Sub", wide, _mean(w, wide))
    return w.cast(_over_root(w, wide, _mean(w, _square(w, wide))), w.dtype)


def layer_norm(w: Writer, x: Tensor, gamma: np.ndarray, beta: np.ndarray) -> Tensor:
    """LayerNorm over the last axis."""
    gamma = _gamma(w, gamma)
    weights = [w.constant(values, w.dtype) for values in (gamma, beta)]
    if w.opset >= 17 and gamma.shape == beta.shape and w.pick(False, True):
        axis = w.pick(-1, x.rank - 1)
        return w.op("LayerNormalization", x, *weights, axis=axis, epsilon=1e-5)
    wide = w.cast(x, _WIDE)
    centred = w.op("Sub", wide, _mean(w, wide))
    unit = _over_root(w, centred, _mean(w, _square(w, centred)))
    scaled = w.both("Mul", unit, w.cast(weights[0], _WIDE))
    return w.cast(w.both("Add", scaled, w.cast(weights[1], _WIDE)), w.dtype)


def _gamma(w: Writer, gamma: np.ndarray) -> np.ndarray:
    if w.breaks.here("gamma of one value"):
        return gamma[:1]
    return w.pick(gamma, gamma, gamma.reshape(1, 1, -1))


def _square(w: Writer, x: Tensor) -> Tensor:
    if w.breaks.here("another power"):
        return w.op("Pow", w.op("Abs", x), 2.1)
    return w.op("Mul", x, x) if w.pick(False, True) else w.op("Pow", x, 2.0)


def _mean(w: Writer, x: Tensor) -> Tensor:
    axes = [w.pick(-1, x.rank - 1)]
    if w.breaks.here("mean over another axis"):
        # Over one token it would be the value itself: then one ulp of fp16 turns the sign of y.
        axes = [0, 1] if w.dtype != _WIDE else [x.rank - 2]
    if w.breaks.here("a mean that drops its axis"):
        flat = w.axes_op("ReduceMean", x, axes, x.rank - 1, since=18, keepdims=0)
        return w.op("Unsqueeze", flat, [-1], rank=x.rank)
    if w.breaks.here("mean over two axes"):
        axes = [x.rank - 2, x.rank - 1]
    return w.axes_op("ReduceMean", x, axes, x.rank, since=18)


def _over_root(w: Writer, x: Tensor, mean: Tensor) -> Tensor:
    """Return x / sqrt(mean + epsilon)."""
    if w.breaks.here("epsilon outside the root"):
        return w.op("Div", x, w.op("Add", w.op("Sqrt", mean), 1e-2))
    if w.breaks.here("epsilon subtracted"):
        return w.op("Div", x, w.op("Sqrt", w.op("Sub", mean, 1e-2)))
    total = w.both("Add", mean, 1e-5)
    if w.breaks.here("another root"):
        return w.op("Mul", x, w.op("Pow", total, -0.45))
    if w.breaks.here("an fp64 island"):
        wide = w.op("Cast", total, to=11)
        return w.op("Div", x, w.op("Cast", w.op("Sqrt", wide), to=1))
    how = w.pick("div", "reciprocal", "one over", "power", "power of root")
    if how == "power":
        return w.both("Mul", x, w.op("Pow", total, -0.5))
    root = w.op("Sqrt", total)
    if how == "div":
        return w.op("Div", x, root)
    if how == "reciprocal":
        return w.both("Mul", x, w.op("Reciprocal", root))
    if how == "one over":
        return w.both("Mul", x, w.op("Div", 1.0, root))
    return w.both("Mul", x, w.op("Pow", root, -1.0))


def activation(w: Writer, kind: str, x: Tensor) -> Tensor:
    """One of the plan's activations."""
    return {
        "silu": silu,
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": _relu,
        "relu2": _relu_squared,
    }[kind](w, x)


def _relu(w: Writer, x: Tensor) -> Tensor:
    return w.op("Relu", x)


def _relu_squared(w: Writer, x: Tensor) -> Tensor:
    y = w.op("Relu", x)
    return w.op("Mul", y, y) if w.pick(True, False) else w.op("Pow", y, 2.0)


def silu(w: Writer, x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    inside = w.op("Mul", x, 1.3) if w.breaks.here("another slope") else x
    return w.both("Mul", x, w.op("Sigmoid", inside))


def _quick_gelu(w: Writer, x: Tensor) -> Tensor:
    slope = 1.6 if w.breaks.here("another slope") else 1.702
    return w.both("Mul", x, w.op("Sigmoid", w.both("Mul", x, slope)))


def _gelu(w: Writer, x: Tensor) -> Tensor:
    if w.opset >= 20 and w.pick(False, False, True):
        return w.op("Gelu", x)
    root = 1.5 if w.breaks.here("another root of two") else 2.0**0.5
    inside = w.op("Div", x, root) if w.pick(True, False) else w.both("Mul", x, 1.0 / root)
    return _half(w, x, w.op("Erf", inside))


def _gelu_tanh(w: Writer, x: Tensor) -> Tensor:
    if w.opset >= 20 and w.pick(False, False, True):
        return w.op("Gelu", x, approximate="tanh")
    root = (2 / np.pi) ** 0.5
    cubic = 0.05 if w.breaks.here("another cubic factor") else 0.044715
    if w.breaks.here("another root of two over pi"):
        root = 0.75
    how = w.pick("pow", "products", "factored")
    if how == "factored":
        inner = w.both("Add", w.both("Mul", w.both("Mul", x, cubic), x), 1.0)
        scaled = w.both("Mul", w.both("Mul", x, root), inner)
    else:
        cube = w.op("Pow", x, 3.0) if how == "pow" else w.both("Mul", x, w.op("Mul", x, x))
        scaled = w.both("Mul", w.both("Add", x, w.both("Mul", cube, cubic)), root)
    return _half(w, x, w.op("Tanh", scaled))


def _half(w: Writer, x: Tensor, bent: Tensor) -> Tensor:
    """Return x (1 + bent) / 2."""
    half = 0.4 if w.breaks.here("another half") else 0.5
    one = 0.9 if w.breaks.here("another one") else 1.0
    phi = w.both("Add", bent, one)
    how = w.pick("x first", "product first", "phi first")
    if how == "x first":
        return w.both("Mul", w.both("Mul", x, half), phi)
    if how == "product first":
        return w.both("Mul", w.both("Mul", x, phi), half)
    return w.both("Mul", x, w.both("Mul", phi, half))
