"""What FlashAttention computes, written for the features that a model's attention has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.definition import Definition, Uses, constant
from opfuse.graph.facts import Facts
from opfuse.graph.rewriter import numpy_dtype

MASK = 3  # the input's index
HIDDEN = 2  # attribute nan_guard: rows that see no key give 0; 1: all whose weights are NaN
COUNTED, UNCOUNTED = 1, 2  # attribute lengths, of the last input: it counts; it does not


_TURN = "{out} = Transpose<perm: ints = [0, 2, 1, 3]>({tensor})"


def layouts_of(layout: object) -> tuple[str, ...]:
    """Return the axes of q, k, v, and y, "BHSD" or "BSHD" each, from the attribute."""
    parts = tuple(str(layout).split(","))
    return parts * 4 if len(parts) == 1 else parts


def _body(uses: Uses) -> str:
    (layout,) = uses.values("layout") - {None} or {"BHSD"}
    turned = [axes == "BSHD" for axes in layouts_of(layout)]
    names = [f"{name}_heads" if turn else name for name, turn in zip("qkvy", turned, strict=True)]
    *of_inputs, y = names
    parts = [_TURN.format(out=f"{x}_heads", tensor=x) for x in "qkv" if f"{x}_heads" in names]
    parts.append(attention(uses, of_inputs, y, MASK))
    if y != "y":
        parts.append(_TURN.format(out="y", tensor=y))
    return "\n".join(parts)


def attention(uses: Uses, inputs: Sequence[str], y: str, mask: int) -> str:
    """Return what makes ``y`` of q, k, and v, all of them [batch, heads, positions, size].

    Input ``mask`` is the mask, where there is one; the slopes and the lengths come last.
    """
    q, k, v = inputs
    sloped, counted = uses.any("slopes"), uses.any("lengths")
    with_mask = uses.inputs - sloped - counted > mask
    parts = [_repeat(uses, k, v), _scores(q)]
    if uses.any("softcap"):
        parts.append(_softcap())
    level = add_mask("capped") if with_mask else "masked = Identity(capped)"
    if counted:
        parts.append(_COUNTS)
    parts.append(level.replace("masked", "level") + _slopes(counted) if sloped else level)
    seen = counted or uses.any("causal") or uses.any("window")
    shown = causal(uses.any("window"), counted) if seen else "logits = Identity(masked)"
    parts.append(shown)
    # Between this cast and the product TensorRT for RTX 1.7 fuses a guard, before it no longer.
    parts.append(
        "weights32 = Softmax<axis: int = -1>(logits)\nweights = CastLike(weights32, values)"
    )
    parts.append(_guard(uses) if uses.any("nan_guard") else "kept = Identity(weights)")
    parts.append(f"{y} = MatMul(kept, values)")
    text = "\n".join(parts)
    return text if uses.any("softcap") else text.replace("capped", "scores")


def add_mask(scores: str) -> str:
    """Return what makes fp32 ``masked`` of ``scores`` and the mask.

    The sum is in the mask's type, in which its finite fill absorbs the scores of a hidden row.
    """
    return f"""
        typed = CastLike({scores}, mask)
        added = Add(typed, mask)
        masked = Cast<to: int = 1>(added)"""


def _repeat(uses: Uses, k: str, v: str) -> str:
    """Give each query head its key/value head, where a group of them shares one."""
    if all(node.attrs["num_heads"] == node.attrs["kv_num_heads"] for node in uses.nodes):
        return f"keys = Identity({k})\nvalues = Identity({v})"
    copies = """
        {y}5 = Unsqueeze({x}, two)
        {y}_front = Shape<start: int = 0, end: int = 2>({x})
        {y}_batch = Shape<start: int = 0, end: int = 1>({x})
        {y}_back = Shape<start: int = 2, end: int = 4>({x})
        {y}_wide = Concat<axis: int = 0>({y}_front, group, {y}_back)
        {y}_copies = Expand({y}5, {y}_wide)
        {y}_flat = Concat<axis: int = 0>({y}_batch, heads, {y}_back)
        {y} = Reshape({y}_copies, {y}_flat)"""
    return """
        one = Constant<value_ints: ints = [1]>()
        two = Constant<value_ints: ints = [2]>()
        heads0 = Constant<value_int: int = @num_heads>()
        kv_heads0 = Constant<value_int: int = @kv_num_heads>()
        heads = Reshape(heads0, one)
        group0 = Div(heads0, kv_heads0)
        group = Reshape(group0, one)""" + "".join(
        copies.format(x=x, y=y) for x, y in ((k, "keys"), (v, "values"))
    )


def _scores(q: str) -> str:
    """The scale is not rounded to q's type: a rounded one shifts every score of a row alike.

    Only the product itself is in q's type; what follows it up to the weights is fp32.
    """
    return f"""
        scale = Constant<value_float: float = @scale>()
        q_wide = Cast<to: int = 1>({q})
        q_product = Mul(q_wide, scale)
        q_scaled = CastLike(q_product, {q})
        keys_t = Transpose<perm: ints = [0, 1, 3, 2]>(keys)
        product = MatMul(q_scaled, keys_t)
        scores = Cast<to: int = 1>(product)"""


def _softcap() -> str:
    return f"""
        cap32 = Constant<value_float: float = @softcap>()
        {constant("cap_zero", 0.0)}
        {constant("cap_one", 1.0)}
        has_cap = Greater(cap32, cap_zero)
        divisor32 = Where(has_cap, cap32, cap_one)
        divisor = CastLike(divisor32, scores)
        ratio = Div(scores, divisor)
        bent = Tanh(ratio)
        bounded = Mul(bent, divisor)
        capped = Where(has_cap, bounded, scores)"""


# How many keys each batch has: [batch, 1, 1, 1], or one number for all.
_COUNTS = """
        lengths64 = Cast<to: int = 7>(lengths)
        every_key = Shape<start: int = -1>(scores)
        lengths0 = Constant<value_int: int = @lengths>()
        counting = Constant<value_int: int = 1>()
        known = Equal(lengths0, counting)
        counts1 = Where(known, lengths64, every_key)
        by_batch = Constant<value_ints: ints = [-1, 1, 1, 1]>()
        key_counts = Reshape(counts1, by_batch)"""


def causal(with_window: bool = False, counted: bool = False) -> str:
    """Return what makes ``logits`` of ``masked``: its lower-right triangle, or a band of it.

    Query i sees key j where j <= i + keys - queries, and with a window where the two are less than
    that many keys apart. ``counted``: the keys are the first ``key_counts`` of each batch.
    """
    keep = _window() if with_window else "keep = Identity(before)"
    if counted:
        keep = keep.replace("keep =", "kept_of_all =")
        keep += "\nthere = Less(columns, key_counts)\nkeep = And(kept_of_all, there)"
    return f"""
        {_positions("masked", counted=counted)}
        causal0 = Constant<value_int: int = @causal>()
        everything = Equal(causal0, first)
        visible = LessOrEqual(columns, limit)
        before = Or(visible, everything)
        {keep}
        {constant("nothing", 0.0)}
        minus_inf32 = Log(nothing)
        minus_inf = CastLike(minus_inf32, masked)
        logits = Where(keep, masked, minus_inf)"""


def _positions(scores: str, end: str = "", *, counted: bool = False) -> str:
    """Return what makes ``limit`` [queries, 1] and ``columns`` [keys] of ``scores``, both int64.

    They are the key that each query stands at, the last one at the last, and the keys themselves.
    ``end`` ends the names, also of ``first``, which is 0. Where ``key_counts`` says how many keys a
    batch has, ``limit`` is [batch, 1, queries, 1].
    """
    at_key = f"""
        limits{end} = Add(rows{end}, offset{end})
        limit{end} = Unsqueeze(limits{end}, column{end})"""
    if counted:
        at_key = f"""
        row{end} = Unsqueeze(rows{end}, column{end})
        of_batch{end} = Sub(key_counts, queries{end})
        limit{end} = Add(row{end}, of_batch{end})"""
    return f"""
        first{end} = Constant<value_int: int = 0>()
        step{end} = Constant<value_int: int = 1>()
        column{end} = Constant<value_ints: ints = [1]>()
        queries1{end} = Shape<start: int = -2, end: int = -1>({scores})
        keys1{end} = Shape<start: int = -1>({scores})
        queries{end} = Squeeze(queries1{end})
        count{end} = Squeeze(keys1{end})
        rows{end} = Range(first{end}, queries{end}, step{end})
        columns{end} = Range(first{end}, count{end}, step{end})
        offset{end} = Sub(count{end}, queries{end}){at_key}"""


def _window() -> str:
    return """
        window = Constant<value_int: int = @window>()
        unlimited = Equal(window, first)
        distances = Sub(limit, columns)
        apart = Abs(distances)
        inside = Less(apart, window)
        near = Or(inside, unlimited)
        keep = And(before, near)"""


def _guard(uses: Uses) -> str:
    if HIDDEN in uses.values("nan_guard"):
        return _guard_of_hidden(uses.opset)
    return f"""
        guard0 = Constant<value_int: int = @nan_guard>()
        guarded = Cast<to: int = 9>(guard0)
        undefined = IsNaN(weights)
        drop = And(undefined, guarded)
        {constant("zero32", 0.0)}
        zero = CastLike(zero32, weights)
        kept = Where(drop, zero, weights)"""


def _guard_of_hidden(opset: int) -> str:
    """Either guard: of weights that are NaN, or of rows that see no key, whose scores are -inf."""
    axes = "<axes: ints = [-1]>(logits)" if opset < 18 else "(logits, last)"
    return f"""
        guard0 = Constant<value_int: int = @nan_guard>()
        of_nan = Constant<value_int: int = 1>()
        of_hidden = Constant<value_int: int = {HIDDEN}>()
        last = Constant<value_ints: ints = [-1]>()
        guarded = Equal(guard0, of_nan)
        undefined = IsNaN(weights)
        drop_nan = And(undefined, guarded)
        top = ReduceMax{axes}
        hidden = IsInf<detect_positive: int = 0>(top)
        guarded_hidden = Equal(guard0, of_hidden)
        drop_hidden = And(hidden, guarded_hidden)
        drop = Or(drop_nan, drop_hidden)
        {constant("zero32", 0.0)}
        zero = CastLike(zero32, weights)
        kept = Where(drop, zero, weights)"""


def _slopes(counted: bool) -> str:
    return f"""{_positions("level", "_sloped", counted=counted)}
        by_head = Constant<value_ints: ints = [1, -1, 1, 1]>()
        away = Sub(limit_sloped, columns_sloped)
        away_abs = Abs(away)
        away32 = Cast<to: int = 1>(away_abs)
        slopes32 = Cast<to: int = 1>(slopes)
        slopes4 = Reshape(slopes32, by_head)
        cost = Mul(away32, slopes4)
        masked = Sub(level, cost)"""


def unify_masks(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts, index: int) -> None:
    """Give a neutral mask, input ``index``, slopes, and lengths where others have such."""
    taken = edit.names(graph)
    sloped, counted = (any(n.attrs.get(name) for n in nodes) for name in ("slopes", "lengths"))
    for node in nodes:
        if sloped and not node.attrs.get("slopes"):
            zeros = np.zeros(int(node.attrs["num_heads"]), np.float32)
            slopes = gs.Constant(_free(f"{node.name}/no_slopes", taken), zeros)
            node.inputs.insert(len(node.inputs) - bool(node.attrs.get("lengths")), slopes)
            node.attrs["slopes"] = 1
        if counted and not node.attrs.get("lengths"):
            zero = np.zeros(1, np.int32)
            node.inputs.append(gs.Constant(_free(f"{node.name}/no_lengths", taken), zero))
            node.attrs["lengths"] = UNCOUNTED
    most = max(len(node.inputs) for node in nodes)
    for node in nodes:
        if len(node.inputs) < most:
            name = _free(f"{node.name}/no_mask", taken)
            dtype = numpy_dtype(facts.dtype(node.inputs[0]))
            rank = len(facts.shape(node.inputs[0]) or ())
            node.inputs.insert(index, gs.Constant(name, np.zeros((1,) * rank, dtype)))


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts) -> None:
    unify_masks(graph, nodes, facts, MASK)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def names(uses: Uses, first: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the inputs: ``first``, the mask, the slopes, and the lengths."""
    trailing = tuple(name for name in ("slopes", "lengths") if uses.any(name))
    mask = ("mask",) if uses.inputs - len(trailing) > len(first) else ()
    return (*first, *mask, *trailing)


ATTRIBUTES = (
    *("num_heads", "kv_num_heads", "scale", "causal", "window", "softcap", "nan_guard"),
    *("slopes", "lengths"),
)

DEFINITION = Definition(
    "FlashAttention",
    lambda uses: names(uses, ("q", "k", "v")),
    ("y",),
    (*ATTRIBUTES, "layout"),
    _body,
    _unify,
    in_fp32=("mask", "slopes"),
)
