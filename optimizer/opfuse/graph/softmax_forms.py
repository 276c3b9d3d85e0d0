"""Softmax with its maximum taken off before, or written out, and masks that are put otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph import edit
from opfuse.graph.edit import producer
from opfuse.graph.rewriter import Rewriter, numpy_dtype
from opfuse.graph.values import FLOATS

_HIDES = 1e3  # what is taken from the score of a key that nobody may see, or more
# What scores pass on their way to the softmax.
_ON_THE_WAY = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Max", "Where", "Cast"),
        *("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
    }
)


def taken_away(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Return x - hidden * 1e30, by which XLNet hides keys, as x + hidden * -1e30: bit for bit."""
    x, product = node.inputs
    scaled = producer(product)
    known = rewriter.facts.dtype(product) in (*FLOATS, TensorProto.BFLOAT16)
    if scaled is None or scaled.op != "Mul" or not known or not _are_scores(node):
        return None
    for hidden, by in (scaled.inputs, scaled.inputs[::-1]):
        value = rewriter.scalar(by)
        if value is not None and value >= _HIDES:
            dtype = numpy_dtype(rewriter.facts.dtype(by))
            less = rewriter.constant(by, np.array(-value, dtype).reshape(by.shape))
            added = rewriter.emit("Mul", [hidden, less], {}, product)
            return rewriter.emit("Add", [x, added], {}, node.outputs[0])
    return None


def _are_scores(node: gs.Node) -> bool:
    """Tell whether every reader of what ``node`` writes makes the input of a softmax of it."""
    pending, seen = [node], set[int]()
    while pending:
        (tensor,) = pending.pop().outputs
        if not tensor.outputs:
            return False
        for reader in tensor.outputs:
            if reader.op not in _ON_THE_WAY and reader.op != "Softmax":
                return False
            if reader.op != "Softmax" and id(reader) not in seen:
                seen.add(id(reader))
                pending.append(reader)
    return True


def without_maximum(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """softmax(x - max(x)) is softmax(x); a Cast may stand before the softmax."""
    axis, inner = int(node.attrs.get("axis", -1)), producer(node.inputs[0])
    cast = inner if inner is not None and inner.op == "Cast" else None
    x = _less_maximum(rewriter, node.inputs[0] if cast is None else cast.inputs[0], axis)
    if x is not None and cast is not None:
        x = rewriter.emit("Cast", [x], dict(cast.attrs), cast.outputs[0])
    if x is not None:
        edit.set_input(node, 0, x)
        rewriter.changed = True
    return None


def written_out(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """exp(x - max(x)) over its sum is softmax(x)."""
    top, total = (producer(tensor) for tensor in node.inputs)
    if top is None or total is None or top.op != "Exp" or total.op != "ReduceSum":
        return None
    axis = _kept_axis(rewriter, total)
    if axis is None or total.inputs[0] is not top.outputs[0]:
        return None
    x = _less_maximum(rewriter, top.inputs[0], axis)
    return None if x is None else rewriter.emit("Softmax", [x], {"axis": axis}, node.outputs[0])


def one_choice(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """where(a, where(b, x, fill), fill) is where(a and b, x, fill)."""
    outer = _choice(rewriter, node)
    between = None if outer is None else producer(outer.x)
    if outer is None or between is None or between.op != "Where" or len(outer.x.outputs) != 1:
        return None
    inner = _choice(rewriter, between)
    if inner is None or rewriter.scalar(inner.fill) != rewriter.scalar(outer.fill):
        return None
    like = node.outputs[0]
    keeps = [
        choice.condition if choice.kept else rewriter.emit("Not", [choice.condition], {}, like)
        for choice in (outer, inner)
    ]
    both = rewriter.emit("And", keeps, {}, like)
    return rewriter.emit("Where", [both, inner.x, outer.fill], {}, like)


@dataclass(frozen=True)
class _Choice:
    """Where ``condition`` is ``kept``, ``x``; elsewhere ``fill``, one constant number."""

    condition: gs.Tensor
    kept: bool
    x: gs.Tensor
    fill: gs.Tensor


def _choice(rewriter: Rewriter, node: gs.Node) -> _Choice | None:
    condition, yes, no = node.inputs
    for kept, x, fill in ((True, yes, no), (False, no, yes)):
        scalar = rewriter.scalar(fill) is not None and len(fill.shape) <= 1
        if scalar and rewriter.shape(x) not in (None, ()):
            return _Choice(condition, kept, x, fill)
    return None


def _less_maximum(rewriter: Rewriter, tensor: gs.Tensor, axis: int) -> gs.Tensor | None:
    """Return x where ``tensor`` is x less its maximum over ``axis``."""
    node = producer(tensor)
    top = None if node is None or node.op != "Sub" else producer(node.inputs[1])
    if node is None or top is None or top.op != "ReduceMax":
        return None
    x, shape = node.inputs[0], rewriter.shape(node.inputs[0])
    over = _kept_axis(rewriter, top)
    if over is None or shape is None or top.inputs[0] is not x:
        return None
    return x if over % len(shape) == axis % len(shape) else None


def _kept_axis(rewriter: Rewriter, node: gs.Node) -> int | None:
    """Return the one axis that a reduction is over, where it keeps it."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = rewriter.integers(node.inputs[1])
    one = axes is not None and len(axes) == 1 and node.attrs.get("keepdims", 1)
    return int(axes[0]) if one else None
