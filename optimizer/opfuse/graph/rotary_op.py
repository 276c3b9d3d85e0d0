"""The standard RotaryEmbedding operator with its heads apart, as other spellings have them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph.expansion import Expansion, Unclear
from opfuse.graph.microsoft_attention import from_heads, to_heads
from opfuse.graph.rewriter import Rewriter


def apart(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Write a RotaryEmbedding of rank 3, heads side by side, as one of rank 4."""
    if len(rewriter.shape(node.inputs[0]) or ()) != 3:
        return None
    e = Expansion(rewriter, node)
    attrs = {name: value for name, value in node.attrs.items() if name != "num_heads"}
    try:
        x = to_heads(e, e[0], e.integer("num_heads"))
        y = from_heads(e, e("RotaryEmbedding", x, *node.inputs[1:], **attrs))
    except Unclear:
        return None
    rewriter.become_identities(node, y)
    return y
