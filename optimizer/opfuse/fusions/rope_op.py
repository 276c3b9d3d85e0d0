"""The standard RotaryEmbedding operator (ai.onnx 23) becomes Rope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import floating, static, text
from opfuse.fusions.rope import turn
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, op

_POSITIONS = 3  # an input

y = op.RotaryEmbedding(Var("x"), Var("cos"), Var("sin"), ...)


def _build(found: Found) -> Replacement:
    """Take the standard operator (ai.onnx 23): its caches hold one half and have no head axis.

    With positions they have a row for each, and no batch.
    """
    node = found.anchor
    floating(found, "x", "cos", "sin")
    shape, half = found.shape("x"), found.shape("cos")
    given = [t for t in node.inputs[_POSITIONS:] if not t.is_empty()]
    if given and len(half) == 2:
        half = (*(found.work.shape(given[0]) or ()), half[1])
    if len(shape) != 4 or len(half) != 3:
        raise Miss(f"x {text(shape)} and cos {text(half)}, want ranks 4 and 3", node)
    size = static(shape[3], "the size that turns", node)
    turned = int(node.attrs.get("rotary_embedding_dim", 0)) or size
    if half[1:] != (shape[2], turned // 2) or half[0] not in (shape[0], 1) or turned % 2:
        raise Miss(f"cos {text(half)} does not fit x {text(shape)}", node)
    pairs = bool(node.attrs.get("interleaved", 0))
    found.work.claim("Rope", "interleaved", str(int(pairs)), node)
    made: list[NewNode] = []
    cos, sin = (_angles(found, name, given, turned, made, pairs=pairs) for name in ("cos", "sin"))
    part = turn(found["x"], cos, sin, node.outputs[0], (*shape[:3], turned), interleaved=pairs)
    if turned != size:
        part = replace(part, attrs={**part.attrs, "head_size": size})
    return Replacement([*made, part])


def _angles(
    found: Found,
    name: str,
    positions: list[gs.Tensor],
    turned: int,
    made: list[NewNode],
    *,
    pairs: bool,
) -> gs.Tensor:
    """Append what makes [batch, 1, positions, turned] of a cache: each angle for both it turns."""
    work, cache = found.work, found[name]

    def emit(what: str, op_type: str, *inputs: gs.Tensor, **attrs: object) -> gs.Tensor:
        out = work.fresh(cache, what, work.dtype(cache) or 0)
        made.append(NewNode(op_type, inputs, (out,), attrs, ""))
        return out

    def integers(what: str, *values: int) -> gs.Tensor:
        return work.constant(cache, what, np.array(values, np.int64))

    rows = emit("rows", "Gather", cache, *positions, axis=0) if positions else cache
    if not pairs:
        both = emit("both", "Concat", rows, rows, axis=-1)
        return emit("per_head", "Unsqueeze", both, integers("axis", 1))
    apart = emit("apart", "Unsqueeze", rows, integers("axes", 1, 4))
    twice = emit("twice", "Concat", apart, apart, axis=-1)
    return emit("per_head", "Reshape", twice, integers("shape", 0, 0, 0, turned))


FUSION = Fusion("Rope", ("RotaryEmbedding",), y, _build)
