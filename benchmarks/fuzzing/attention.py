"""Attention, from its normalised input to its output projection, as it is and broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.fuzzing.masks import mask, masked, position
from benchmarks.fuzzing.norms import rms_norm
from benchmarks.fuzzing.plans import HEADS, HIDDEN, Plan
from benchmarks.fuzzing.rope import rope, rope_whole, tables
from benchmarks.fuzzing.writer import Tensor, Writer

SIZE = HIDDEN // HEADS
Weights = Callable[..., np.ndarray]
Names = dict[str, str]
PAST = 3
_LAST = int(np.iinfo(np.int64).max)
MEMORY = 7


def attention(w: Writer, plan: Plan, x: Tensor, weights: Weights, names: Names) -> Tensor:
    """Write the attention of ``plan`` over x [batch, seq, hidden]."""
    source = (
        w.input("memory", w.dtype, [names["batch"], names["keys"], HIDDEN]) if plan.cross else x
    )
    q, k, v = _projected(w, plan, x, source, weights)
    if plan.qk_norm:
        q = rms_norm(w, q, weights("q_norm", SIZE, mean=1.0))
        k = rms_norm(w, k, weights("k_norm", SIZE, mean=1.0))
    if plan.rope:
        whole = w.opset >= 23 and plan.rope == "half" and w.pick(False, False, True)
        cos_sin = tables(w, plan, names, whole=whole)
        turned = (
            rope_whole(w, part, cos_sin) if whole else rope(w, plan.rope, part, cos_sin)
            for part in (q, k)
        )
        q, k = turned
    if plan.cache:
        k, v = (_grown(w, part, name, plan, names) for part, name in ((k, "k"), (v, "v")))
    if _can_be_whole(w, plan) and w.pick(False, False, True):
        context = _whole(w, plan, (q, k, v), x, names)
    else:
        context = _written_out(w, plan, (q, k, v), x, names)
    turned = w.op("Transpose", context, perm=[0, 2, 1, 3])
    flat = _reshaped(w, turned, x, [HIDDEN])
    return linear(w, flat, weights("out", HIDDEN, HIDDEN), _bias(plan, weights, "out", HIDDEN))


def _can_be_whole(w: Writer, plan: Plan) -> bool:
    """Tell whether the operator computes what the spelling of its own does in every row.

    Of a row masked with the lowest finite number, onnxruntime 1.31 makes 0 at opset 23 and 24,
    where the standard and torch weigh all keys alike; its mask has a row for each query.
    """
    narrow = plan.mask == "padding" and not plan.position
    uniform = plan.mask in ("keep", "causal", "padding", "window") and not plan.guard
    other = plan.softcap or plan.sinks or plan.mask in ("apart", "before")
    return w.opset >= 23 and not (other or narrow or uniform)


def _whole(
    w: Writer, plan: Plan, qkv: tuple[Tensor, Tensor, Tensor], x: Tensor, names: Names
) -> Tensor:
    """The standard operator, which shares key/value heads itself."""
    scale = SIZE**-0.5 if plan.scaled else 1.0
    mask = _bias_and_mask(w, plan, x, names)
    return w.op("Attention", *qkv, *mask, rank=4, scale=scale)


def _bias_and_mask(w: Writer, plan: Plan, x: Tensor, names: Names) -> list[Tensor]:
    parts = [position(w, plan, x, names)] if plan.position else []
    parts += [mask(w, plan, x, names)] if plan.mask else []
    return [w.both("Add", *parts)] if len(parts) == 2 else parts


def _written_out(
    w: Writer, plan: Plan, qkv: tuple[Tensor, Tensor, Tensor], x: Tensor, names: Names
) -> Tensor:
    q, *kv = qkv
    k, v = (_repeated(w, part, x, plan.kv_heads) for part in kv)
    scores = _scores(w, plan, q, k)
    if plan.softcap:
        scores = _bent(w, scores)
    # In fp16, other roundings on the way to a score make another integer of it.
    if w.dtype == np.float32 and w.breaks.here("scores rounded to integers"):
        scores = w.op("Cast", w.op("Cast", scores, to=6), to=w.element)
    logits = masked(w, plan, scores, x, names)
    odds = _with_sinks(w, plan, logits, x) if plan.sinks else _softmax(w, plan, logits)
    context = w.op("MatMul", odds, v)
    return w.op("Squeeze", context, [0], rank=4) if context.rank == 5 else context


def _bias(plan: Plan, weights: Weights, name: str, size: int) -> np.ndarray | None:
    return weights(f"{name}.bias", size) if plan.bias else None


def linear(w: Writer, x: Tensor, weight: np.ndarray, bias: np.ndarray | None) -> Tensor:
    """Write x W + b over the last axis."""
    if w.pick(False, False, False, True):
        return _gemm(w, x, weight, bias)
    how = w.pick("plain", "plain", "plain", "transposed", "identity", "cast")
    if how == "transposed":
        factor = w.op("Transpose", w.constant(np.ascontiguousarray(weight.T), w.dtype), perm=[1, 0])
    else:
        factor = w.constant(weight, w.dtype)
    if how == "identity":
        factor = w.op("Identity", factor)
    if how == "cast":
        factor = w.op("Cast", w.constant(weight.astype(np.float64), np.float64), to=w.element)
    if w.breaks.here("a weight with another reader"):
        w.output(w.op("ReduceMax", factor, rank=2, keepdims=1), "largest")
    y = w.op("MatMul", x, factor)
    return y if bias is None else w.both("Add", y, w.constant(bias, w.dtype))


def _gemm(w: Writer, x: Tensor, weight: np.ndarray, bias: np.ndarray | None) -> Tensor:
    flat = w.op("Reshape", x, [-1, weight.shape[0]], rank=2)
    extra = [] if bias is None else [w.constant(bias, w.dtype)]
    turned = w.pick(0, 1)
    factor = np.ascontiguousarray(weight.T) if turned else weight
    attrs = {"transB": 1} if turned else {}
    y = w.op("Gemm", flat, w.constant(factor, w.dtype), *extra, rank=2, **attrs)
    return _reshaped(w, y, x, [weight.shape[1]])


def _reshaped(w: Writer, y: Tensor, x: Tensor, rest: list[int]) -> Tensor:
    """Give ``y`` the batch and sequence of ``x`` [batch, seq, ...], and then ``rest``."""
    rank = 2 + len(rest)
    sizes = [w.size(x, axis) for axis in (0, 1)]
    if y.rank == x.rank and w.pick(True, False) and rank == 3:
        return w.op("Reshape", y, [0, 0, *rest], rank=rank)
    if y.rank > 2 and w.pick(False, True):
        return w.op("Reshape", y, [0, w.pick(0, -1), *rest], rank=rank)
    last = w.pick(rest, [*rest[:-1], -1])
    if y.rank == 2 and w.mask_apart:
        # A mask of another batch would give attention that batch, and -1 behind a Gemm what is
        # over: no norm behind it could know its length.
        last = rest
    target = w.op("Concat", *sizes, *([item] for item in last), rank=1, axis=0)
    return w.op("Reshape", y, target, rank=rank)


def _projected(w: Writer, plan: Plan, x: Tensor, source: Tensor, weights: Weights) -> list[Tensor]:
    heads = [HEADS, plan.kv_heads, plan.kv_heads]
    columns = [count * SIZE for count in heads]
    parts = [weights(name, HIDDEN, size) for name, size in zip("qkv", columns, strict=True)]
    biases = [_bias(plan, weights, name, size) for name, size in zip("qkv", columns, strict=True)]
    given = [x, source, source]
    if not plan.packed and w.breaks.here("keys of another tensor"):
        given[1] = w.op("Tanh", source)
    if not plan.packed:
        flat = [
            linear(w, each, weight, bias)
            for each, weight, bias in zip(given, parts, biases, strict=True)
        ]
    else:
        bias = np.concatenate(biases) if plan.bias else None
        flat = parted(w, linear(w, x, np.concatenate(parts, 1), bias), columns)
    return [
        _heads(w, part, each, count)
        for part, each, count in zip(flat, (x, source, source), heads, strict=True)
    ]


def parted(w: Writer, x: Tensor, columns: list[int]) -> list[Tensor]:
    """Take x apart along its last axis."""
    if w.pick(True, False):
        return w.split("Split", [x, columns], len(columns), axis=w.pick(-1, x.rank - 1))
    ends = np.cumsum(columns).tolist()
    starts = [0, *ends[:-1]]
    return [
        w.slice(x, start, end, end == ends[-1]) for start, end in zip(starts, ends, strict=True)
    ]


def _heads(w: Writer, flat: Tensor, x: Tensor, count: int) -> Tensor:
    split = _reshaped(w, flat, x, [count, SIZE])
    return w.op("Transpose", split, perm=[0, 2, 1, 3])


def _grown(w: Writer, x: Tensor, name: str, plan: Plan, names: Names) -> Tensor:
    past = w.input(f"past_{name}", w.dtype, [names["batch"], plan.kv_heads, names["past"], SIZE])
    order = (x, past) if w.breaks.here("the past behind the present") else (past, x)
    grown = w.op("Concat", *order, axis=w.pick(2, -2))
    w.output(grown, f"present_{name}")
    return grown


def _repeated(w: Writer, part: Tensor, x: Tensor, kv_heads: int) -> Tensor:
    group = HEADS // kv_heads
    if group == 1:
        return part
    tiled = w.breaks.here("tiled heads")
    axis = 1 if tiled else 2
    single = w.op("Unsqueeze", part, [axis], rank=5)
    ones = [1, group, 1, 1, 1] if tiled else [1, 1, group, 1, 1]
    how = w.pick("sizes", "ones", "tile")
    if how == "tile":
        wide = w.op("Tile", single, ones)
    elif how == "ones":
        wide = w.op("Expand", single, ones)
    else:
        front = [[group], [kv_heads]] if tiled else [[kv_heads], [group]]
        target = w.op("Concat", w.size(x, 0), *front, w.size(part, 2), [SIZE], rank=1, axis=0)
        wide = w.op("Expand", single, target)
    if w.pick(False, True):
        return w.op("Reshape", wide, [0, HEADS, -1, SIZE], rank=4)
    target = w.op("Concat", w.size(x, 0), [HEADS], w.size(part, 2), [SIZE], rank=1, axis=0)
    return w.op("Reshape", wide, target, rank=4)


def _scores(w: Writer, plan: Plan, q: Tensor, k: Tensor) -> Tensor:
    scale = SIZE**-0.5 if plan.scaled else 1.0
    where = w.pick("scores", "q", "k", "kt", "both") if plan.scaled else "none"
    if where == "q":
        q = _times(w, q, scale)
    if where == "both":
        q, k = _times(w, q, scale**0.5), _times(w, k, scale**0.5)
    if where == "k":
        k = _times(w, k, scale)
    if w.breaks.here("keys reshaped instead of transposed"):
        sizes = [w.size(k, axis) for axis in (0, 1, 3, 2)]
        kt = w.op("Reshape", k, w.op("Concat", *sizes, rank=1, axis=0), rank=4)
    else:
        kt = w.op("Transpose", k, perm=[0, 1, 3, 2])
    if where == "kt":
        kt = _times(w, kt, scale)
    scores = w.op("MatMul", q, kt)
    if where == "scores":
        scores = _times(w, scores, scale)
    if w.breaks.here("a scale of one head"):
        values = np.array([1, 1, 1.5, 1], w.dtype).reshape(1, HEADS, 1, 1)
        scores = w.op("Mul", scores, values)
    return scores


def _times(w: Writer, x: Tensor, scale: float) -> Tensor:
    how = w.pick("mul", "div", "sqrt")
    if how == "mul":
        return w.both("Mul", x, scale)
    over = w.constant(1 / scale, w.dtype)
    if how == "sqrt":
        over = w.op("Sqrt", w.constant(scale**-2, w.dtype))
    return w.op("Div", x, over)


def _bent(w: Writer, scores: Tensor) -> Tensor:
    cap = 3.0
    over = 2.0 if w.breaks.here("two caps") else cap
    ratio = w.op("Div", scores, over) if w.pick(True, False) else w.both("Mul", scores, 1 / over)
    return w.both("Mul", w.op("Tanh", ratio), cap)


def _softmax(w: Writer, plan: Plan, scores: Tensor) -> Tensor:
    axis = w.pick(-1, scores.rank - 1)
    if w.breaks.here("softmax over another axis"):
        axis = -2
    wide = w.cast(scores, np.float32) if w.pick(True, False) else scores
    odds = w.op("Softmax", wide, axis=axis)
    if not plan.guard:
        return w.cast(odds, w.dtype)
    early = w.pick(True, False)
    odds = w.cast(odds, w.dtype) if early else odds
    fill = 0.1 if w.breaks.here("a guard that fills with another value") else 0.0
    return w.cast(w.op("Where", w.op("IsNaN", odds), fill, odds), w.dtype)


def _with_sinks(w: Writer, plan: Plan, logits: Tensor, x: Tensor) -> Tensor:
    """Join a score of each head, take the softmax, and drop its probability again."""
    values = np.random.default_rng(6).standard_normal(HEADS).astype(w.dtype)
    own = w.op("Reshape", w.constant(values, w.dtype), [1, HEADS, 1, 1], rank=4)
    sizes = [w.size(x, axis) for axis in (0, 1)]
    target = w.op("Concat", sizes[0], [HEADS], sizes[1], [1], rank=1, axis=0)
    sinks = w.op("Expand", own, target, rank=4)
    joined = w.op("Concat", logits, sinks, rank=4, axis=w.pick(-1, 3))
    if w.pick(True, False):
        top = w.axes_op("ReduceMax", joined, [w.pick(-1, 3)], 4, since=18)
        joined = w.op("Sub", joined, top)
    odds = _softmax(w, plan, joined)
    first = w.breaks.here("a key dropped with the sinks kept")
    bounds = ([1], [_LAST]) if first else ([0], [-1])
    return w.op("Slice", odds, *bounds, [w.pick(-1, 3)], rank=4)
