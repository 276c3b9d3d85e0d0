"""A GELU that is written out and stands alone becomes the standard operator."""

from __future__ import annotations

from opfuse.fusions import activations
from opfuse.fusions.guards import floating, same_type
from opfuse.graph.fusion import Decline, Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, one_of

SINCE = 20  # ai.onnx opset of Gelu

x = Var("x")
y = one_of("activation", gelu=activations.gelu(x), gelu_tanh=activations.gelu_tanh(x))


def _build(found: Found) -> Replacement:
    if found.anchor.op == "Gelu":
        raise Decline("is one already")
    dtype = floating(found, "x")
    same_type(found, found.anchor.outputs[0], dtype)
    activation = activations.check(found)
    if found.work.opset < SINCE:
        raise Miss(
            f"Gelu needs opset {SINCE}, the model has {found.work.opset}; export with it",
            found.anchor,
        )
    attrs = {"approximate": "tanh" if activation == "gelu_tanh" else "none"}
    return Replacement([NewNode("Gelu", (found["x"],), (found.anchor.outputs[0],), attrs, "")])


FUSION = Fusion("Gelu", ("Mul",), y, _build, near=4)
