"""Rope: y = x * cos + rotate_half(x) * sin over the last axis (Su et al. 2021).

x is [batch, heads, positions, size] (or any layout that cos and sin broadcast to), cos and sin
have the last axis whole: their two halves are what two halves of x turn by.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.guards import broadcasts, floating, last_axis, same_type, static, text
from opfuse.graph.definition import Definition, Uses, halves
from opfuse.graph.edit import producer
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Decline, Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Op, Var, any_of, maybe_cast, op

__all__ = ["DEFINITION", "FUSION", "turn"]

x, cos, sin = Var("x"), Var("cos"), Var("sin")
wide = maybe_cast(x)
low = op.Slice(wide, Var("low_start"), Var("low_end"), Var("low_axis"), ...)
high = op.Slice(wide, Var("high_start"), Var("high_end"), Var("high_axis"), ...)
split = op.Split(wide, ...)
by_slice = op.Concat(op.Neg(high), low)
by_split = op.Concat(op.Neg(split[1]), split[0])
pairs = op.Concat(op.Unsqueeze(op.Neg(high), Var("axis")), op.Unsqueeze(low, Var("axis")))
by_pairs = op.Reshape(pairs, ...)
turned = any_of(by_slice, by_split, by_pairs)
total = op.Add(op.Mul(wide, cos), op.Mul(turned, sin))
y = any_of(op.Cast(total), total)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    floating(found, "cos", "sin")
    result = found.anchor.outputs[0]
    if found.work.dtype(result) != dtype and found.anchor.op == "Add":
        raise Decline("the Cast behind it decides")
    same_type(found, result, dtype)
    shape = found.shape("x")
    size = static(shape[-1], "the size that turns", found.anchor)
    _check_parts(found, shape, size)
    for name in ("cos", "sin"):
        _check_cache(found, found[name], shape)
    interleaved = found.has(by_pairs)
    found.work.claim("Rope", "interleaved", str(int(interleaved)), found.anchor)
    return Replacement(
        [turn(found["x"], found["cos"], found["sin"], result, shape, interleaved=interleaved)]
    )


def turn(
    x: gs.Tensor,
    cos: gs.Tensor,
    sin: gs.Tensor,
    y: gs.Tensor,
    shape: Shape,
    *,
    interleaved: bool = False,
) -> NewNode:
    """Return the Rope node that turns all of ``x``: its halves, or each two neighbours."""
    heads = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0
    attrs = {"interleaved": int(interleaved), "rotary_dim": shape[-1], "num_heads": heads}
    return NewNode("Rope", (x, cos, sin), (y,), attrs)


def _check_parts(found: Found, shape: Shape, size: int) -> None:
    rank = len(shape)
    if size % 2:
        raise Miss(f"{size} values do not turn in pairs", found.anchor)
    if found.has(by_pairs):
        _check_pairs(found, shape, size)
        return
    last_axis(found.node(by_slice if found.has(by_slice) else by_split), rank, default=0)
    if found.has(split):
        node = found.node(split)
        last_axis(node, rank, default=0)
        lengths = [found.work.shape(t) for t in node.outputs]
        if len(lengths) != 2 or any(s is None or s[-1] * 2 != size for s in lengths):
            raise Miss("does not split into two equal halves", node)
        return
    _check_slice(found, low, rank, (0, size // 2, 1), size)
    _check_slice(found, high, rank, (size // 2, size, 1), size)


def _check_pairs(found: Found, shape: Shape, size: int) -> None:
    """Each value stands beside the one that it turns with: x0, x1, x2, ... -> -x1, x0, -x3, ..."""
    rank = len(shape)
    _check_slice(found, low, rank, (0, size, 2), size)
    _check_slice(found, high, rank, (1, size, 2), size)
    last_axis(found.node(pairs), rank + 1, default=0)
    flat = found.work.shape(found.node(by_pairs).outputs[0])
    if flat != shape or found.work.shape(found.node(pairs).outputs[0]) != (
        *shape[:-1],
        size // 2,
        2,
    ):
        raise Miss("does not lay the pairs side by side again", found.node(by_pairs))


def _check_slice(
    found: Found, pattern: Op, rank: int, want: tuple[int, int, int], size: int
) -> None:
    node = found.node(pattern)
    known = [found.work.facts.value(tensor) for tensor in node.inputs[1:]]
    values = [v.ravel()[0] for v in known if v is not None and v.size == 1]
    if len(values) != len(known) or not all(isinstance(value, int) for value in values):
        raise Miss("its bounds are not constants", node)
    start, end, axis, *rest = values
    step = rest[0] if rest else 1
    bounds = tuple(min(size, b + size if b < 0 else b) for b in (start, end))
    if (*bounds, step) != want or axis % rank != rank - 1:
        raise Miss(
            f"takes {start}:{end}:{step} of axis {axis}, "
            f"want {':'.join(map(str, want))} of the last",
            node,
        )


def _check_cache(found: Found, tensor: gs.Tensor, shape: Shape) -> None:
    have = found.work.shape(tensor)
    if have is None or not broadcasts(have, shape) or have[-1] != shape[-1]:
        raise Miss(
            f"{tensor.name} is {text(have)}, which does not provably broadcast to {text(shape)}",
            producer(tensor),
        )


def _body(uses: Uses) -> str:
    return f"""
        wide = CastLike(x, cos)
        {_pairs() if uses.any("interleaved") else _halves(uses.opset)}
        straight = Mul(wide, cos)
        across = Mul(turned, sin)
        total = Add(straight, across)
        y = CastLike(total, x)"""


def _halves(opset: int) -> str:
    return f"""
        {halves(opset, "low", "high", "wide")}
        minus_high = Neg(high)
        turned = Concat<axis: int = -1>(minus_high, low)"""


def _pairs() -> str:
    return """
        zero = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()
        two = Constant<value_ints: ints = [2]>()
        last = Constant<value_ints: ints = [-1]>()
        end = Constant<value_ints: ints = [9223372036854775807]>()
        even = Slice(wide, zero, end, last, two)
        odd = Slice(wide, one, end, last, two)
        minus_odd = Neg(odd)
        first = Unsqueeze(minus_odd, last)
        second = Unsqueeze(even, last)
        paired = Concat<axis: int = -1>(first, second)
        shape = Shape(wide)
        turned = Reshape(paired, shape)"""


DEFINITION = Definition(
    "Rope", ("x", "cos", "sin"), ("y",), ("interleaved", "rotary_dim", "num_heads"), _body
)
FUSION = Fusion("Rope", ("Cast", "Add"), y, _build, near=4)
