"""LayerNormalization written out becomes the standard operator (Ba et al. 2016, eq. 4)."""

from __future__ import annotations

from opfuse.fusions.guards import (
    equals,
    floating,
    for_other_weights,
    known_casts,
    last_axis,
    reduces_last,
    same_type,
    text,
    vector,
)
from opfuse.fusions.unit import epsilon_of, unit
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Var, any_of, op

SINCE = 17  # ai.onnx opset of LayerNormalization

x, gamma, beta = Var("x"), Var("gamma"), Var("beta")
mean = op.ReduceMean(x, ...)
centred = op.Sub(x, mean)
square = any_of(op.Pow(centred, Const("two")), op.Mul(centred, centred))
spread = op.ReduceMean(square, ...)
over_root = unit(centred, spread)
# The dynamo exporter at opset 23 takes what follows the mean for an RMSNorm.
rms = op.RMSNormalization(centred, gamma)
product = op.Mul(over_root.whole, gamma)
scaled = any_of(product, rms)
y = any_of(op.Add(scaled, beta), scaled)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    shape = found.shape("x")
    if found.work.opset < SINCE:
        raise Miss(f"LayerNormalization needs opset {SINCE}", found.anchor)
    means = [found.node(mean), *([] if found.has(rms) else [found.node(spread)])]
    for node in means:
        reduces_last(found.work, node, len(shape))
    equals(found, "two", 2.0)
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    known_casts(found)
    if found.work.shape(result) != shape:
        raise Miss(f"gamma or beta widens {text(shape)}", found.anchor)
    weights = [name for name in ("gamma", "beta") if found.has(name)]
    inputs = (found["x"], *(vector(found, name, shape[-1], dtype) for name in weights))
    attrs = {"axis": -1, "epsilon": _epsilon(found, len(shape))}
    node = NewNode("LayerNormalization", inputs, (result,), attrs, "")
    return Replacement([node], shared=for_other_weights(found, product))


def _epsilon(found: Found, rank: int) -> float:
    if not found.has(rms):
        return epsilon_of(found, over_root)
    node = found.node(rms)
    last_axis(node, rank)
    if node.attrs.get("stash_type", 1) != 1:
        raise Miss("computes in another type than fp32", node)
    return float(node.attrs.get("epsilon", 1e-5))


# 9: an RMSNorm with something added behind it has 8 of these operators and is no near miss.
FUSION = Fusion("LayerNormalization", ("Add", "Mul", "RMSNormalization"), y, _build, near=9)
