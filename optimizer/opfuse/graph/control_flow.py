"""Bodies of If, Loop, and Scan are kept as they are; what could fuse in them is told."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.work import Miss, Work, label

# What a reader of the report would expect a fusion from.
_EXPECTED = {
    "Softmax": "FlashAttention",
    "Attention": "FlashAttention",
    "LayerNormalization": "AddLayerNorm",
    "RMSNormalization": "RmsNorm",
    "ReduceMean": "RmsNorm",
    "RotaryEmbedding": "Rope",
}
_ADVICE = "export what stands in the body as a model of its own, or without control flow"


def tell(work: Work) -> None:
    """Note one near-miss for each kind that the bodies of a node may hold."""
    for node in work.graph.nodes:
        told: set[str] = set()
        for inner in _inside(node):
            kind = _EXPECTED.get(inner.op, "")
            if kind and edit.is_standard(inner) and kind not in told:
                told.add(kind)
                reason = f"stands in a body of {label(node)}, and bodies are not rewritten"
                work.miss(kind, node, Miss(reason, inner, _ADVICE))


def _inside(node: gs.Node) -> Iterator[gs.Node]:
    for body in edit.subgraphs(node):
        yield from edit.every_node(body)
