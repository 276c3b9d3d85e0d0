"""Attention sinks: a score of each head beside those of the keys (Xiao et al. 2023; gpt-oss).

Exporters join it to the scores before the softmax and drop its probability behind. FlashAttention
gets one key more, of zeros, whose score is its mask: the sink.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import cast_to, last_axis, text
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Miss, NewNode
from opfuse.graph.pattern import Op


def joined(found: Found, column: Op, part: Op) -> bool:
    """Tell whether there are sinks: ``column`` joins them, and ``part`` leaves them out again.

    Raises:
        Miss: There is one without the other.
    """
    if found.has(column) and not found.has(part):
        raise Miss("joins to the scores what is read as a key's", found.node(column))
    if found.has(part) and not found.has(column):
        raise Miss("takes a part of the probabilities", found.node(part))
    return found.has(part)


def check(found: Found, column: Op, part: Op, space: Shape) -> None:
    """Refuse sinks that are no one score of each head behind those of the keys.

    Args:
        found: The match.
        column: The Concat of scores and sinks.
        part: The Slice of the probabilities.
        space: Of the scores: [batch, heads, queries, keys].
    """
    last_axis(found.node(column), len(space), default=0)
    shape = found.work.shape(found["sink"])
    if len(space) != 4 or shape is None or len(shape) != 4 or shape[-1] != 1:
        raise Miss(f"joins {text(shape)} to scores {text(space)}, want one column", found.anchor)
    _drops_last(found, found.node(part), space)


def _drops_last(found: Found, node: gs.Node, space: Shape) -> None:
    known = [found.work.facts.value(tensor) for tensor in node.inputs[1:]]
    values = [v.ravel()[0] for v in known if v is not None and v.size == 1]
    whole = len(values) == len(known) and len(values) in (3, 4) and values[3:] in ([], [1])
    if not whole or values[0] != 0 or values[1] not in (-1, space[-1]) or values[2] not in (-1, 3):
        raise Miss("does not take the probabilities of all keys, and of keys alone", node)


def with_sink(
    found: Found,
    key: gs.Tensor,
    value: gs.Tensor,
    mask: tuple[gs.Tensor, ...],
    made: list[NewNode],
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """Return keys, values, and the mask with the sink's place behind the others."""
    sink, work = found["sink"], found.work
    seen = mask[0] if mask else work.constant(sink, "no_mask", np.zeros((), _kind(found, sink)))
    dtype = work.dtype(seen)
    sink = cast_to(work, sink, "typed", dtype, made)
    int64 = onnx.TensorProto.INT64
    front, keys, target = (work.fresh(sink, name, int64) for name in ("front", "keys", "target"))
    made.append(NewNode("Shape", (sink,), (front,), {"start": 0, "end": 3}, ""))
    made.append(NewNode("Shape", (key,), (keys,), {"start": 2, "end": 3}, ""))
    made.append(NewNode("Concat", (front, keys), (target,), {"axis": 0}, ""))
    wide, whole = (work.fresh(sink, name) for name in ("mask", "with_mask"))
    made.append(NewNode("Expand", (seen, target), (wide,), {}, ""))
    made.append(NewNode("Concat", (wide, sink), (whole,), {"axis": -1}, ""))
    return (*(_one_more(found, tensor, made) for tensor in (key, value)), whole)


def _one_more(found: Found, tensor: gs.Tensor, made: list[NewNode]) -> gs.Tensor:
    """Return [batch, heads, keys, size] with a key of zeros behind the others."""
    out = found.work.fresh(tensor, "with_sink")
    pads = found.work.constant(tensor, "pads", np.array([0, 0, 0, 0, 0, 0, 1, 0], np.int64))
    made.append(NewNode("Pad", (tensor, pads), (out,), {"mode": "constant"}, ""))
    return out


def _kind(found: Found, tensor: gs.Tensor) -> np.dtype:
    return onnx.helper.tensor_dtype_to_np_dtype(found.work.dtype(tensor) or 1)
