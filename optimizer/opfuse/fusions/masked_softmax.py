"""MaskedSoftmax: softmax(scale * scores + mask) over keys, where the attention around it stays.

It stays where something else reads the probabilities, or where another step stands between them
and the values. ``scores`` are [..., queries, keys]; with ``causal`` no query sees a later key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from opfuse.fusions.attention import scaled
from opfuse.fusions.attention_body import add_mask, causal, unify_masks
from opfuse.fusions.attention_operands import mask_of
from opfuse.fusions.guards import floating, known_casts, last_axis, scale_of
from opfuse.graph.definition import Definition, Uses
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts, Shape
from opfuse.graph.fusion import Decline, Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Var, any_of, maybe_cast, op

MASK = 1  # the input's index
_PRODUCTS = ("MatMul", "Gemm", "Einsum")
# What is computed from a product by these masks nothing.
_KEEPS = ("Mul", "Div", "Tanh", "Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze")

logits = maybe_cast(scaled(maybe_cast(Var("scores")), "scores"))
biased = any_of(op.Add(logits, Var("bias")), logits)
kept = op.Where(Var("keep"), biased, Const("fill"))
dropped = op.Where(Var("drop"), Const("fill"), biased)
masked = any_of(op.Add(biased, Var("mask")), kept, dropped, logits)
softmax = op.Softmax(maybe_cast(masked))
y = any_of(op.Cast(softmax), softmax)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "scores")
    result = found.anchor.outputs[0]
    if found.work.dtype(result) != dtype:
        raise Decline("a Cast before or behind it decides")
    space = found.shape("scores")
    if len(space) < 3:
        raise Decline("classes, not keys")
    _is_attention(found, space)
    last_axis(found.node(softmax), len(space))
    known_casts(found)
    _not_masked_before(found)
    made: list[NewNode] = []
    mask = mask_of(found, space, made)
    attrs = {"scale": _scale(found), "causal": 0}
    made.append(NewNode("MaskedSoftmax", (found["scores"], *mask), (result,), attrs))
    return Replacement(made)


def _is_attention(found: Found, space: Shape) -> None:
    """Leave a softmax alone that has no mask, and whose scores are no product of two tensors."""
    if any(found.has(name) for name in ("keep", "drop")):
        return
    product = _is_product(found["scores"])
    if found.has("mask"):
        shape = found.work.shape(found["mask"]) or (0, 0)
        if len(shape) < len(space) and all(dim == 1 for dim in shape[:-1]):
            raise Decline("adds a bias of a linear layer")
        if _is_product(found["mask"]) and not product:
            raise Decline("what it adds are the scores")
    elif not any(found.has(f"scores_{name}") for name in ("times", "over")):
        raise Decline("has neither mask nor scale")
    elif not product:
        raise Decline("its scores are no product of queries and keys")


def _is_product(tensor: gs.Tensor) -> bool:
    """Tell whether ``tensor`` is a product of two computed tensors, scaled or not."""
    node = producer(tensor)
    if node is not None and node.op in ("Mul", "Div", "Cast"):
        node = producer(node.inputs[0])
    return node is not None and node.op == "MatMul" and not isinstance(node.inputs[1], gs.Constant)


def _not_masked_before(found: Found) -> None:
    """Refuse a finite fill beside scores that may hold another: a row may be masked by both."""
    if not found.has("fill") or not math.isfinite(found.scalar("fill")):
        return
    source = producer(found["scores"])
    while source is not None and source.op in _KEEPS:
        computed = [tensor for tensor in source.inputs if not isinstance(tensor, gs.Constant)]
        source = producer(computed[0]) if computed else None
    if source is not None and source.op not in _PRODUCTS:
        reason = f"masks with {found.scalar('fill'):g} what {source.op} may have masked before"
        raise Miss(reason, found.reader(found["fill"]))


def _scale(found: Found) -> float:
    scale = scale_of(found, "scores")
    if not math.isfinite(scale) or scale == 0:
        raise Miss(f"the scale is {scale}", found.node(softmax))
    return scale


def _body(uses: Uses) -> str:
    return f"""
        scale = Constant<value_float: float = @scale>()
        wide = Cast<to: int = 1>(scores)
        scaled = Mul(wide, scale)
        {add_mask("scaled") if uses.inputs > MASK else "masked = Identity(scaled)"}
        {causal() if uses.any("causal") else "logits = Identity(masked)"}
        weights = Softmax<axis: int = -1>(logits)
        y = CastLike(weights, scores)"""


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts) -> None:
    unify_masks(graph, nodes, facts, MASK)


DEFINITION = Definition(
    "MaskedSoftmax", ("scores", "mask"), ("y",), ("scale", "causal"), _body, _unify, ("mask",)
)
FUSION = Fusion("MaskedSoftmax", ("Cast", "Softmax"), y, _build)
