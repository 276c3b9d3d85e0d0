"""Rope: y = x * cos + rotate_half(x) * sin over the last axis (Su et al. 2021).

x is [batch, heads, positions, size] (or any layout that cos and sin broadcast to), cos and sin
have the last axis whole: their two halves are what two halves of x turn by. Where ``head_size`` is
given, only the first ``rotary_dim`` elements of a head turn, and cos and sin have no others.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.fusions.guards import floating, last_axis, own_type, static
from opfuse.fusions.parts import covers, takes_halves, takes_slice
from opfuse.graph.definition import Definition, Uses, halves
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, maybe_cast, op

__all__ = ["DEFINITION", "FUSION", "rotation", "turn"]

x, cos, sin = Var("x"), Var("cos"), Var("sin")
wide = maybe_cast(x)
low = op.Slice(wide, Var("low_start"), Var("low_end"), Var("low_axis"), ...)
high = op.Slice(wide, Var("high_start"), Var("high_end"), Var("high_axis"), ...)
split = op.Split(wide, ...)
by_slice = op.Concat(op.Neg(high), low)
by_split = op.Concat(op.Neg(split[1]), split[0])
pairs = op.Concat(op.Unsqueeze(op.Neg(high), ...), op.Unsqueeze(low, ...))
by_pairs = op.Reshape(pairs, ...)
# The same by the negative angle.
back_by_slice = op.Concat(high, op.Neg(low))
back_by_split = op.Concat(split[1], op.Neg(split[0]))
back_pairs = op.Concat(op.Unsqueeze(high, ...), op.Unsqueeze(op.Neg(low), ...))
back_by_pairs = op.Reshape(back_pairs, ...)
backwards = any_of(back_by_slice, back_by_split, back_by_pairs)
turned = maybe_cast(any_of(by_slice, by_split, by_pairs, backwards))
straight, across = op.Mul(wide, cos), op.Mul(turned, sin)
less = op.Sub(straight, across)
total = any_of(op.Add(straight, across), less)
y = any_of(op.Cast(total), total)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    if floating(found, "cos", "sin") not in (dtype, TensorProto.FLOAT):
        raise Miss("cos and sin are neither of the input's type nor fp32", found.anchor)
    result = found.anchor.outputs[0]
    own_type(found, dtype)
    shape = found.shape("x")
    size = static(shape[-1], "the size that turns", found.anchor)
    _check_parts(found, shape, size)
    for name in ("cos", "sin"):
        covers(found, found[name], shape)
    interleaved = found.has(by_pairs) or found.has(back_by_pairs)
    found.work.claim("Rope", "interleaved", str(int(interleaved)), found.anchor)
    angle, made = found["sin"], []
    backs = (back_by_slice, back_by_split, back_by_pairs)
    if found.has(less) != any(found.has(form) for form in backs):
        angle = found.work.fresh(angle, "negative")
        made.append(NewNode("Neg", (found["sin"],), (angle,), {}, ""))
    made.append(turn(found["x"], found["cos"], angle, result, shape, interleaved=interleaved))
    return Replacement(made)


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
    for joined, flat in ((pairs, by_pairs), (back_pairs, back_by_pairs)):
        if found.has(flat):
            _check_pairs(found, shape, size, found.node(joined), found.node(flat))
            return
    halves_of = (by_slice, by_split, back_by_slice, back_by_split)
    last_axis(next(found.node(form) for form in halves_of if found.has(form)), rank, default=0)
    if found.has(split):
        takes_halves(found, split, rank, size)
        return
    takes_slice(found, low, rank, (0, size // 2, 1), size)
    takes_slice(found, high, rank, (size // 2, size, 1), size)


def _check_pairs(found: Found, shape: Shape, size: int, joined: gs.Node, laid: gs.Node) -> None:
    """Each value stands beside the one that it turns with: x0, x1, x2, ... -> -x1, x0, -x3, ..."""
    rank = len(shape)
    takes_slice(found, low, rank, (0, size, 2), size)
    takes_slice(found, high, rank, (1, size, 2), size)
    last_axis(joined, rank + 1, default=0)
    beside = found.work.shape(joined.outputs[0])
    if found.work.shape(laid.outputs[0]) != shape or beside != (*shape[:-1], size // 2, 2):
        raise Miss("does not lay the pairs side by side again", laid)


def _body(uses: Uses) -> str:
    return f"""
        wide = Cast<to: int = 1>(x)
        cos_wide = Cast<to: int = 1>(cos)
        sin_wide = Cast<to: int = 1>(sin)
        {rotation(uses, "total", "wide", "cos_wide", "sin_wide")}
        y = CastLike(total, x)"""


def rotation(uses: Uses, y: str, x: str, cos: str, sin: str) -> str:
    """Return the statements of ``y``, which is ``x`` turned as ``uses`` tell, all of one type."""
    turn = _turn_pairs if uses.any("interleaved") else _turn_halves
    if not uses.any("head_size"):
        return turn(uses.opset, y, x, cos, sin)
    return f"""
        {y}_start = Constant<value_ints: ints = [0]>()
        {y}_count = Constant<value_int: int = @rotary_dim>()
        {y}_one = Constant<value_ints: ints = [1]>()
        {y}_middle = Reshape({y}_count, {y}_one)
        {y}_end = Constant<value_ints: ints = [9223372036854775807]>()
        {y}_axis = Constant<value_ints: ints = [-1]>()
        {y}_front = Slice({x}, {y}_start, {y}_middle, {y}_axis)
        {y}_rest = Slice({x}, {y}_middle, {y}_end, {y}_axis)
        {turn(uses.opset, f"{y}_turned", f"{y}_front", cos, sin)}
        {y} = Concat<axis: int = -1>({y}_turned, {y}_rest)"""


def _turn_halves(opset: int, y: str, x: str, cos: str, sin: str) -> str:
    return f"""
        {halves(opset, f"{y}_low", f"{y}_high", x)}
        {y}_minus = Neg({y}_high)
        {y}_swapped = Concat<axis: int = -1>({y}_minus, {y}_low)
        {y}_straight = Mul({x}, {cos})
        {y}_across = Mul({y}_swapped, {sin})
        {y} = Add({y}_straight, {y}_across)"""


def _turn_pairs(opset: int, y: str, x: str, cos: str, sin: str) -> str:
    del opset  # Slice and Concat are what they were in opset 13
    return f"""
        {y}_zero = Constant<value_ints: ints = [0]>()
        {y}_first = Constant<value_ints: ints = [1]>()
        {y}_two = Constant<value_ints: ints = [2]>()
        {y}_last = Constant<value_ints: ints = [-1]>()
        {y}_stop = Constant<value_ints: ints = [9223372036854775807]>()
        {y}_even = Slice({x}, {y}_zero, {y}_stop, {y}_last, {y}_two)
        {y}_odd = Slice({x}, {y}_first, {y}_stop, {y}_last, {y}_two)
        {y}_minus = Neg({y}_odd)
        {y}_left = Unsqueeze({y}_minus, {y}_last)
        {y}_right = Unsqueeze({y}_even, {y}_last)
        {y}_paired = Concat<axis: int = -1>({y}_left, {y}_right)
        {y}_shape = Shape({x})
        {y}_swapped = Reshape({y}_paired, {y}_shape)
        {y}_straight = Mul({x}, {cos})
        {y}_across = Mul({y}_swapped, {sin})
        {y} = Add({y}_straight, {y}_across)"""


DEFINITION = Definition(
    "Rope",
    ("x", "cos", "sin"),
    ("y",),
    ("interleaved", "rotary_dim", "num_heads", "head_size"),
    _body,
    in_fp32=("cos", "sin"),
)
FUSION = Fusion(
    "Rope", ("Cast", "Add", "Sub"), y, _build, near=4, key="Cast|Neg|Concat|Slice|Split"
)
