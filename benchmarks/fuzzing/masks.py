"""What is added to the scores of an attention, and what hides some of them."""

from __future__ import annotations

import numpy as np

from benchmarks.fuzzing.plans import HEADS, Plan
from benchmarks.fuzzing.writer import Tensor, Writer

_WINDOW = 3  # keys that a query of a sliding window sees, its own included
_REACH = 2  # distances that have a bias of their own


def masked(w: Writer, plan: Plan, scores: Tensor, x: Tensor, names: dict[str, str]) -> Tensor:
    """Write the biases and masks of ``plan`` over scores [batch, heads, queries, keys]."""
    bias = position(w, plan, x, names) if plan.position else None
    if plan.mask in ("apart", "before"):
        return _apart(w, plan, scores if bias is None else w.both("Add", scores, bias), x, names)
    if not plan.mask:
        return scores if bias is None else w.both("Add", scores, bias)
    hides = mask(w, plan, x, names)
    if not plan.sinks and w.breaks.here("a mask of rank 5"):  # they are joined to rank 4
        hides = w.op("Unsqueeze", hides, [0], rank=5)
    if hides.dtype == bool:
        return _filled(w, plan, hides, scores)
    if bias is not None:
        if w.pick(True, False):
            return w.both("Add", scores, w.both("Add", bias, hides))
        scores = w.both("Add", scores, bias)
    if w.breaks.here("a mask that multiplies"):
        if w.dtype == np.float16:  # or a score below -1 gives inf, except in onnxruntime's fp32
            hides = w.op("Div", hides, 64.0)
        return w.op("Mul", scores, hides)
    return w.both("Add", scores, hides)


def mask(w: Writer, plan: Plan, x: Tensor, names: dict[str, str]) -> Tensor:
    """Return what is added to the scores, or where they are kept."""
    low = _lowest(w, plan)
    full = [names["mask_batch"], 1, names["mask_seq"], names["keys"]]
    if plan.mask == "additive":
        return w.input("mask", w.dtype, full)
    if plan.mask == "keep":
        return w.input("mask", bool, full)
    seen = _seen(w, names)
    if plan.mask == "padding":
        return _padding(w, plan, seen)
    keep = w.both("And", _causal(w, plan, x), w.op("Cast", seen, to=9))
    zeros, lows = w.constant(0.0, w.dtype), w.constant(low, w.dtype)
    if w.pick(True, False):
        return w.op("Where", keep, zeros, lows)
    return w.op("Where", w.op("Not", keep), lows, zeros)


def position(w: Writer, plan: Plan, x: Tensor, names: dict[str, str]) -> Tensor:
    """Return the bias of each head, [1, heads, queries, keys] or what broadcasts to it."""
    if plan.position == "given":
        return w.input("position_bias", w.dtype, [1, HEADS, names["seq"], names["keys"]])
    rows, columns = _rows_and_columns(w, x)
    distance = w.op("Sub", columns, rows)
    random = np.random.default_rng(5)
    if plan.position == "alibi":
        slopes = (0.5 ** np.arange(1, HEADS + 1)).astype(w.dtype).reshape(-1, 1, 1)
        if w.breaks.here("a slope for all heads"):
            slopes = slopes[:1]
        far = w.cast(distance if w.pick(True, False) else columns, w.dtype)
        return w.both("Mul", w.op("Unsqueeze", far, [0], rank=3), slopes)
    near = w.op("Max", w.op("Min", distance, np.array(_REACH)), np.array(-_REACH))
    index = w.both("Add", near, np.array(_REACH))
    values = random.standard_normal((2 * _REACH + 1, HEADS)).astype(w.dtype)
    if w.pick(True, False):  # T5: a row of the table for each distance
        rows = w.op("Gather", w.constant(values, w.dtype), index, rank=3, axis=0)
        return w.op("Unsqueeze", w.op("Transpose", rows, perm=[2, 0, 1]), [0], rank=4)
    flat = w.op("Reshape", index, [-1], rank=1)  # Swin: the distances flat, and split again
    rows = w.op("Gather", w.constant(values, w.dtype), flat, rank=2, axis=0)
    target = w.op("Concat", w.size(x, 1), w.size(x, 1), [HEADS], rank=1, axis=0)
    turned = w.op("Transpose", w.op("Reshape", rows, target, rank=3), perm=[2, 0, 1])
    return w.op("Unsqueeze", turned, [0], rank=4)


def _apart(w: Writer, plan: Plan, scores: Tensor, x: Tensor, names: dict[str, str]) -> Tensor:
    """A causal mask, and one of padding added behind it or before it.

    What both hide is lower than what one hides only where it is added behind.
    """
    hides = _padding(w, plan, _seen(w, names))
    if plan.mask == "before":
        scores = w.both("Add", scores, hides)
    chosen = _filled(w, plan, _causal(w, plan, x), scores)
    return chosen if plan.mask == "before" else w.both("Add", chosen, hides)


def _seen(w: Writer, names: dict[str, str]) -> Tensor:
    given = w.input("attention_mask", np.int64, [names["mask_batch"], names["keys"]])
    return w.op("Unsqueeze", given, w.constant([1, 2], np.int64), rank=4)


def _padding(w: Writer, plan: Plan, seen: Tensor) -> Tensor:
    return w.both("Mul", w.op("Sub", 1.0, w.cast(seen, w.dtype)), _lowest(w, plan))


def _causal(w: Writer, plan: Plan, x: Tensor) -> Tensor:
    """Return where a query sees a key: none that is later, or too early for its window."""
    rows, columns = _rows_and_columns(w, x)
    causal = w.op("LessOrEqual", columns, rows)
    if plan.mask != "window":
        return causal
    first = w.op("Sub", rows, np.array(_WINDOW))
    near = w.op("Greater", columns, first) if w.pick(True, False) else w.op("Less", first, columns)
    return w.both("And", causal, near)


def _rows_and_columns(w: Writer, x: Tensor) -> tuple[Tensor, Tensor]:
    end = w.op("Squeeze", w.size(x, 1), [0], rank=0)
    steps = w.op("Range", np.array(0), end, np.array(1), rank=1)
    return w.op("Unsqueeze", steps, [1], rank=2), w.op("Unsqueeze", steps, [0], rank=2)


def _filled(w: Writer, plan: Plan, keep: Tensor, scores: Tensor) -> Tensor:
    low = w.constant(_lowest(w, plan), w.dtype)
    if w.breaks.here("a fill that scores reach"):
        low = w.constant(-1.0, w.dtype)
    # What is added here counts twice in a row that something else hides as well.
    how = w.pick("where", "not") if plan.mask == "before" else w.pick("where", "not", "additive")
    if how == "where":
        return w.op("Where", keep, scores, low)
    drop = w.op("Not", keep)
    if how == "not":
        return w.op("Where", drop, low, scores)
    return w.both("Add", scores, w.op("Where", drop, low, w.constant(0.0, w.dtype)))


def _lowest(w: Writer, plan: Plan) -> float:
    return float("-inf") if plan.guard else float(np.finfo(w.dtype).min)
