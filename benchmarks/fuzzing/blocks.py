"""A block of a plan: a model in a random spelling, and the inputs to run it on."""

from __future__ import annotations

import zlib

import numpy as np
import onnx

from benchmarks.fuzzing.attention import MEMORY, PAST, SIZE, attention, linear, parted
from benchmarks.fuzzing.images import CHANNELS, image
from benchmarks.fuzzing.norms import activation, layer_norm, plain_norm, rms_norm
from benchmarks.fuzzing.plans import HEADS, HIDDEN, INNER, Plan
from benchmarks.fuzzing.writer import Breaks, Tensor, Writer

_CANONICAL = {"batch": "batch", "seq": "seq", "past": "past", "keys": "keys",
              "mask_batch": "batch", "mask_seq": "seq"}  # fmt: skip
_SYMBOLS = ("N", "b", "batch_size", "s0", "seq_len", "T", "sequence", "dim", "s77", "time", "L")


def write(
    plan: Plan, random: np.random.Generator | None = None, breaks: Breaks | None = None
) -> onnx.ModelProto:
    """Write ``plan``.

    Args:
        plan: What to write.
        random: Draws the spelling; None writes the canonical one.
        breaks: The place to break, if any; learns every place that could be broken.
    """
    w = Writer(plan.opset, plan.dtype, random, breaks or Breaks())
    names = _names(plan, w)
    w.batch, w.mask_apart = names["batch"], names["mask_batch"] != names["batch"]
    x = w.input("x", w.dtype, [names["batch"], names["seq"], HIDDEN])
    if plan.part == "image":
        y = image(w, names, _weights(w))
    elif plan.part == "mlp":
        y = _mlp_half(w, plan, x)
    elif plan.place == "parallel":
        normed = _norm(w, plan, x, "norm")
        y = w.both("Add", x, attention(w, plan, normed, _weights(w), names))
        if plan.part == "block":
            y = w.both("Add", y, _mlp(w, plan, normed))
    else:
        y = _attention_half(w, plan, x, names)
        if plan.part == "block":
            y = _mlp_half(w, plan, y)
    w.output(y, "y")
    return w.model()


def feeds(plan: Plan) -> dict[str, np.ndarray]:
    """Return the inputs that every spelling of ``plan`` runs on.

    Some rows are fully masked, but in fp16: there a finite fill does not absorb the scores, so
    that what such a row gives hangs on the spelling.
    """
    random = np.random.default_rng(zlib.crc32(repr(plan).encode()))
    batch, seq = plan.sizes
    keys = MEMORY if plan.cross else seq + (PAST if plan.cache else 0)
    keep = random.integers(0, 2, (batch, 1, seq, keys)).astype(bool)
    keep[..., 0] = True
    seen = keep[:, 0, 0].copy()
    if not plan.half or plan.guard:
        keep[0, 0, -1] = False
        seen[0] = False
    if plan.half and plan.mask == "window":
        seen[:] = True  # the first key may lie outside
    past = (batch, plan.kv_heads, PAST, SIZE)
    modulation = random.standard_normal((6, batch, HIDDEN)).astype(plan.dtype)
    return {
        "image": random.standard_normal((batch, CHANNELS, seq, 3)).astype(plan.dtype),
        **{f"modulation_{index}": part for index, part in enumerate(modulation)},
        "x": random.standard_normal((batch, seq, HIDDEN)).astype(plan.dtype),
        "position_ids": np.tile(np.arange(seq), (batch, 1)),
        "mask": keep if plan.mask == "keep" else np.where(keep, 0, -50).astype(plan.dtype),
        "attention_mask": seen.astype(np.int64),
        "memory": random.standard_normal((batch, keys, HIDDEN)).astype(plan.dtype),
        "position_bias": random.standard_normal((1, HEADS, seq, keys)).astype(plan.dtype),
        "past_k": random.standard_normal(past).astype(plan.dtype),
        "past_v": random.standard_normal(past).astype(plan.dtype),
    }


def _names(plan: Plan, w: Writer) -> dict[str, str]:
    if w.random is None:
        names = dict(_CANONICAL)
    else:
        drawn = w.random.permutation(_SYMBOLS)
        names = dict(zip(("batch", "seq", "past", "keys"), map(str, drawn), strict=False))
        own = w.chance(0.2)  # the mask's sizes have names of their own
        names["mask_batch"] = str(drawn[4]) if own else names["batch"]
        names["mask_seq"] = str(drawn[5]) if own else names["seq"]
    if not plan.cache and not plan.cross and not w.chance(0.2):
        names["keys"] = names["seq"]
    return names


def _weights(w: Writer):
    def draw(name: str, *shape: int, mean: float = 0.0) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(name.encode()))
        scale = shape[0] ** -0.5 if len(shape) > 1 else 0.2
        return (random.standard_normal(shape) * scale + mean).astype(w.dtype)

    return draw


def _norm(w: Writer, plan: Plan, x: Tensor, name: str) -> Tensor:
    weights = _weights(w)
    gamma = weights(f"{name}.gamma", HIDDEN, mean=1.0)
    if plan.modulated:
        return _modulated(w, plan, x, name)
    if plan.plus_one:
        return rms_norm(w, x, gamma - 1, plus_one=True)
    if plan.norm == "rms":
        return rms_norm(w, x, gamma)
    return layer_norm(w, x, gamma, weights(f"{name}.beta", HIDDEN))


def _modulated(w: Writer, plan: Plan, x: Tensor, name: str) -> Tensor:
    """Return norm(x) * (1 + scale) + shift."""
    number = 0 if name == "attention_norm" else 2
    scale, shift = (_modulation(w, number + part) for part in (0, 1))
    y = plain_norm(w, plan.norm, x)
    if w.pick(False, True):
        scaled = w.both("Add", y, w.both("Mul", y, scale))
    else:
        scaled = w.both("Mul", y, w.both("Add", scale, 1.0))
    return w.both("Add", scaled, shift)


def _modulation(w: Writer, number: int) -> Tensor:
    given = w.input(f"modulation_{number}", w.dtype, [w.batch, HIDDEN])
    return w.op("Unsqueeze", given, [1], rank=3)


def _attention_half(w: Writer, plan: Plan, x: Tensor, names: dict[str, str]) -> Tensor:
    weights = _weights(w)
    if plan.place == "post":
        total = _residual(w, x, attention(w, plan, x, weights, names))
        return _norm(w, plan, total, "attention_norm")
    normed = x if plan.place == "behind" else _norm(w, plan, x, "attention_norm")
    y = attention(w, plan, normed, weights, names)
    return _residual(w, x, _behind(w, plan, y, "attention_norm_2"))


def _behind(w: Writer, plan: Plan, y: Tensor, name: str) -> Tensor:
    """What stands between a half and its residual: a norm, or a gate of the condition."""
    if plan.place in ("sandwich", "behind"):
        return _norm(w, plan, y, name)
    if plan.modulated:
        return w.both("Mul", y, _modulation(w, 4 if name == "attention_norm_2" else 5))
    return y


def _mlp_half(w: Writer, plan: Plan, x: Tensor) -> Tensor:
    """The MLP with its norm; on its own it begins with a residual, for the norm to take in."""
    if plan.part == "mlp" and plan.place == "pre":
        x = _residual(w, x, w.op("Tanh", x))
    if plan.place == "post":
        return _norm(w, plan, _residual(w, x, _mlp(w, plan, x)), "mlp_norm")
    normed = x if plan.place == "behind" else _norm(w, plan, x, "mlp_norm")
    return _residual(w, x, _behind(w, plan, _mlp(w, plan, normed), "mlp_norm_2"))


def _residual(w: Writer, x: Tensor, y: Tensor) -> Tensor:
    if w.breaks.here("a residual that is broadcast"):
        x = w.axes_op("ReduceMean", x, [1], x.rank, since=18)
    return w.both("Add", x, y)


def _mlp(w: Writer, plan: Plan, x: Tensor) -> Tensor:
    weights = _weights(w)

    def bias(name: str, size: int) -> np.ndarray | None:
        return weights(f"{name}.bias", size) if plan.bias else None

    gate, up = weights("gate", HIDDEN, INNER), weights("up", HIDDEN, INNER)
    if plan.gated and plan.packed:
        order = [up, gate] if plan.up_first else [gate, up]
        parts = parted(w, linear(w, x, np.concatenate(order, 1), None), [INNER, INNER])
        if plan.up_first:
            parts.reverse()
    else:
        parts = [linear(w, x, gate, bias("gate", INNER))]
        parts += [linear(w, x, up, None)] if plan.gated else []
    if plan.gated and w.breaks.here("gate and up swapped"):
        parts.reverse()
    y = activation(w, plan.act, parts[0])
    if plan.gated:
        other = parts[1]
        if w.breaks.here("an up that is broadcast"):
            other = w.axes_op("ReduceMean", other, [-1], other.rank, since=18)
        y = w.both("Mul", y, other)
    return linear(w, y, weights("down", INNER, HIDDEN), bias("down", HIDDEN))
