"""LayerNormalization written out becomes the standard operator (Ba et al. 2016, eq. 4)."""

from __future__ import annotations

from opfuse.fusions.guards import equals, floating, reduces_last, same_type, text, vector
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Var, any_of, op

SINCE = 17  # ai.onnx opset of LayerNormalization

x, gamma, beta = Var("x"), Var("gamma"), Var("beta")
mean = op.ReduceMean(x, ...)
centred = op.Sub(x, mean)
square = any_of(op.Pow(centred, Const("two")), op.Mul(centred, centred))
spread = op.ReduceMean(square, ...)
root = op.Sqrt(op.Add(spread, Const("epsilon")))
unit = any_of(
    op.Div(centred, root),
    op.Mul(centred, any_of(op.Reciprocal(root), op.Div(Const("one"), root))),
)
scaled = op.Mul(unit, gamma)
y = any_of(op.Add(scaled, beta), scaled)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    shape = found.shape("x")
    if found.work.opset < SINCE:
        raise Miss(f"LayerNormalization needs opset {SINCE}", found.anchor)
    for node in (found.node(mean), found.node(spread)):
        reduces_last(found.work, node, len(shape))
    for name, want in (("two", 2.0), ("one", 1.0)):
        equals(found, name, want)
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    if found.work.shape(result) != shape:
        raise Miss(f"gamma or beta widens {text(shape)}", found.anchor)
    weights = [name for name in ("gamma", "beta") if found.has(name)]
    inputs = (found["x"], *(vector(found, name, shape[-1], dtype) for name in weights))
    attrs = {"axis": -1, "epsilon": found.scalar("epsilon")}
    return Replacement([NewNode("LayerNormalization", inputs, (result,), attrs, "")])


# 9: an RMSNorm with something added behind it has 8 of these operators and is no near miss.
FUSION = Fusion("LayerNormalization", ("Add", "Mul"), y, _build, near=9)
