"""The standard RotaryEmbedding operator (ai.onnx 23) becomes Rope."""

from __future__ import annotations

import numpy as np

from opfuse.fusions.guards import floating, static, text
from opfuse.fusions.rope import turn
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, op

y = op.RotaryEmbedding(Var("x"), Var("cos"), Var("sin"))


def _build(found: Found) -> Replacement:
    """Take the standard operator (ai.onnx 23): its caches hold one half and have no head axis."""
    node = found.anchor
    dtype = floating(found, "x", "cos", "sin")
    shape, half = found.shape("x"), found.shape("cos")
    if len(shape) != 4 or len(half) != 3:
        raise Miss(f"x {text(shape)} and cos {text(half)}, want ranks 4 and 3", node)
    size = static(shape[3], "the size that turns", node)
    turned = node.attrs.get("rotary_embedding_dim", 0)
    if node.attrs.get("interleaved", 0) or turned not in (0, size):
        raise Miss("turns pairs or only a part of each head", node)
    if half != (shape[0], shape[2], size // 2) and half != (1, shape[2], size // 2):
        raise Miss(f"cos {text(half)} does not fit x {text(shape)}", node)
    found.work.claim("Rope", "interleaved", "0", node)
    made: list[NewNode] = []
    caches = []
    for name in ("cos", "sin"):
        axis = found.work.constant(found[name], "axis", np.array([1], np.int64))
        both, wide = (found.work.fresh(found[name], s, dtype) for s in ("both", "per_head"))
        made.append(NewNode("Concat", (found[name],) * 2, (both,), {"axis": -1}, ""))
        made.append(NewNode("Unsqueeze", (both, axis), (wide,), {}, ""))
        caches.append(wide)
    made.append(turn(found["x"], caches[0], caches[1], node.outputs[0], shape))
    return Replacement(made)


FUSION = Fusion("Rope", ("RotaryEmbedding",), y, _build)
