"""Rope of the front of each head, beside the rest of it: one Rope that carries the rest along."""

from __future__ import annotations

from dataclasses import replace

from opfuse.fusions.guards import last_axis, same_type, static
from opfuse.fusions.parts import takes_slice
from opfuse.fusions.rope import turn
from opfuse.graph.fusion import Found, Fusion, Miss, Replacement
from opfuse.graph.pattern import Var, any_of, fused, op

x = Var("x")
split = op.Split(x, ...)
front, rest = op.Slice(x, ...), op.Slice(x, ...)
turned = fused.Rope(any_of(split[0], front), Var("cos"), Var("sin"))
y = op.Concat(turned, any_of(split[1], rest))


def _build(found: Found) -> Replacement:
    work, rope = found.work, found.node(turned)
    result = found.anchor.outputs[0]
    shape = found.shape("x")
    size = static(shape[-1], "the size of a head", found.anchor)
    count = rope.attrs["rotary_dim"]
    last_axis(found.anchor, len(shape), default=0)
    if found.has(split):
        node = found.node(split)
        last_axis(node, len(shape), default=0)
        lengths = [work.shape(tensor) for tensor in node.outputs]
        if [s and s[-1] for s in lengths] != [count, size - count]:
            raise Miss("does not split into the part that turns and the rest", node)
    else:
        takes_slice(found, front, len(shape), (0, count, 1), size)
        takes_slice(found, rest, len(shape), (count, size, 1), size)
    same_type(found, result, work.dtype(found["x"]) or 0)
    whole = turn(
        found["x"],
        found["cos"],
        found["sin"],
        result,
        shape,
        interleaved=bool(rope.attrs["interleaved"]),
    )
    part = {"rotary_dim": count, "head_size": size}
    return Replacement([replace(whole, attrs={**whole.attrs, **part})])


FUSION = Fusion("Rope", ("Concat",), y, _build, near=4)
