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
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Op, Var, any_of, op

__all__ = ["DEFINITION", "FUSION", "turn"]

x, cos, sin = Var("x"), Var("cos"), Var("sin")
low = op.Slice(x, Var("low_start"), Var("low_end"), Var("low_axis"), ...)
high = op.Slice(x, Var("high_start"), Var("high_end"), Var("high_axis"), ...)
split = op.Split(x, ...)
by_slice = op.Concat(op.Neg(high), low)
by_split = op.Concat(op.Neg(split[1]), split[0])
y = op.Add(op.Mul(x, cos), op.Mul(any_of(by_slice, by_split), sin))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "cos", "sin")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    shape = found.shape("x")
    size = static(shape[-1], "the size that turns", found.anchor)
    _check_halves(found, len(shape), size)
    for name in ("cos", "sin"):
        _check_cache(found, found[name], shape)
    return Replacement([turn(found["x"], found["cos"], found["sin"], result, shape, size, 0)])


def turn(
    x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, y: gs.Tensor, shape: Shape, size: int, pairs: int
) -> NewNode:
    """Return the Rope node of ``x``; ``pairs`` is 1 where neighbours turn together, not halves."""
    heads = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0
    attrs = {"interleaved": pairs, "rotary_dim": size, "num_heads": heads}
    return NewNode("Rope", (x, cos, sin), (y,), attrs)


def _check_halves(found: Found, rank: int, size: int) -> None:
    concat = found.node(by_slice if found.has(by_slice) else by_split)
    last_axis(concat, rank, default=0)
    if found.has(split):
        node = found.node(split)
        last_axis(node, rank, default=0)
        lengths = [found.work.shape(t) for t in node.outputs]
        if len(lengths) != 2 or any(s is None or s[-1] * 2 != size for s in lengths):
            raise Miss("does not split into two equal halves", node)
        return
    _check_slice(found, low, "low", rank, (0, size // 2), size)
    _check_slice(found, high, "high", rank, (size // 2, size), size)


def _check_slice(
    found: Found, pattern: Op, name: str, rank: int, want: tuple[int, int], size: int
) -> None:
    node = found.node(pattern)
    known = [found.work.facts.value(tensor) for tensor in node.inputs[1:]]
    values = [v.ravel()[0] for v in known if v is not None and v.size == 1]
    if len(values) != len(known) or not all(isinstance(value, int) for value in values):
        raise Miss("its bounds are not constants", node)
    start, end, axis, *step = values
    bounds = tuple(min(size, b + size if b < 0 else b) for b in (start, end))
    if bounds != want or axis % rank != rank - 1 or step not in ([], [1]) or size % 2:
        raise Miss(
            f"takes {start}:{end} of axis {axis}, want {want[0]}:{want[1]} of the last", node
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
        {halves(uses.opset, "low", "high", "x")}
        minus_high = Neg(high)
        turned = Concat<axis: int = -1>(minus_high, low)
        straight = Mul(x, cos)
        across = Mul(turned, sin)
        y = Add(straight, across)"""


DEFINITION = Definition(
    "Rope", ("x", "cos", "sin"), ("y",), ("interleaved", "rotary_dim", "num_heads"), _body
)
FUSION = Fusion("Rope", ("Add",), y, _build, near=4)
