"""Rope written by its halves: [a cos - b sin, b cos + a sin] for x = [a, b]."""

from __future__ import annotations

from opfuse.fusions.guards import floating, last_axis, same_type, static
from opfuse.fusions.parts import covers, takes_halves, takes_slice
from opfuse.fusions.rope import turn
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, op

x, cos, sin = Var("x"), Var("cos"), Var("sin")
split = op.Split(x, ...)
low, high = op.Slice(x, ...), op.Slice(x, ...)
a, b = any_of(split[0], low), any_of(split[1], high)
first = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
second = op.Add(op.Mul(b, cos), op.Mul(a, sin))
whole = op.Concat(first, second)
swapped = op.Concat(second, first)
y = any_of(whole, swapped)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "cos", "sin")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    shape = found.shape("x")
    size = static(shape[-1], "the size that turns", found.anchor)
    last_axis(found.anchor, len(shape), default=0)
    if found.has(swapped):
        raise Miss("its parts stand in the other order", found.anchor)
    if found.has(split):
        takes_halves(found, split, len(shape), size)
    else:
        takes_slice(found, low, len(shape), (0, size // 2, 1), size)
        takes_slice(found, high, len(shape), (size // 2, size, 1), size)
    for name in ("cos", "sin"):
        covers(found, found[name], (*shape[:-1], size // 2))
    found.work.claim("Rope", "interleaved", "0", found.anchor)
    made: list[NewNode] = []
    whole = []
    for name in ("cos", "sin"):
        both = found.work.fresh(found[name], "both")
        made.append(NewNode("Concat", (found[name],) * 2, (both,), {"axis": -1}, ""))
        whole.append(both)
    made.append(turn(found["x"], whole[0], whole[1], result, shape))
    return Replacement(made)


FUSION = Fusion("Rope", ("Concat",), y, _build, near=5)
