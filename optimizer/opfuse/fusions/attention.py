"""FlashAttention: y = softmax(scale * q k^T + mask) v (Vaswani et al. 2017; Dao et al. 2022).

q is [batch, num_heads, queries, head_size]; k and v are [batch, kv_num_heads, keys, head_size].
With fewer key/value heads each serves a group of query heads, and the copies that exporters make
of them are dropped. ``nan_guard`` keeps what a fully masked row gives where the original turns NaN
into 0, or sets to 0 once more what it masked.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions import attention_sinks, constant_mask
from opfuse.fusions.attention_axes import Folded
from opfuse.fusions.attention_body import DEFINITION, HIDDEN
from opfuse.fusions.attention_operands import (
    REACHABLE,
    heads_of,
    key_of,
    known_biases,
    mask_of,
    query_of,
    without_copies,
)
from opfuse.fusions.guards import (
    floating,
    is_close,
    known_casts,
    last_axis,
    may_equal,
    same_type,
    scale_of,
    static,
    text,
)
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Pattern, Var, any_of, maybe_cast, op
from opfuse.graph.protos import HALVES

__all__ = ["DEFINITION", "FUSION"]

_LARGEST = 65504.0  # scale, that of fp16: with more, scores leave their type here or there


def scaled(x: Pattern, name: str) -> Pattern:
    """Return the pattern of ``x``, times or over a constant, or bare."""
    return any_of(op.Mul(x, Const(f"{name}_times")), op.Div(x, Const(f"{name}_over")), x)


scores = op.MatMul(scaled(maybe_cast(Var("q")), "q"), scaled(maybe_cast(Var("kt")), "k"))
by_head = op.Mul(scores, Var("by_head"))
logits = maybe_cast(any_of(scaled(maybe_cast(scores), "scores"), by_head))
bent = op.Mul(op.Tanh(scaled(logits, "cap")), Const("softcap"))
capped = any_of(bent, logits)
biased = any_of(
    op.Add(op.Add(capped, Var("first_bias")), Var("bias")), op.Add(capped, Var("bias")), capped
)
kept = op.Where(Var("keep"), biased, Const("fill"))
dropped = op.Where(Var("drop"), Const("fill"), biased)
chosen = any_of(kept, dropped)
masked = any_of(op.Add(any_of(biased, chosen), Var("mask")), chosen, capped)
raised = any_of(op.Max(masked, Const("floor")), op.Clip(masked, Const("floor"), ...))
sunk = op.Concat(masked, Var("sink"))
softmax = op.Softmax(maybe_cast(any_of(sunk, masked, raised)))
weights = maybe_cast(softmax)
guard = op.Where(op.IsNaN(weights), Const("zero"), weights)
dropped_again = op.Where(Var("again"), Const("zero"), weights)
kept_again = op.Where(Var("again"), weights, Const("zero"))
of_keys = op.Slice(weights, ...)
guarded = any_of(guard, dropped_again, kept_again, weights, of_keys)
context = op.MatMul(maybe_cast(guarded), maybe_cast(Var("v")))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "q", "kt", "v")
    result, behind, turn = _result(found, dtype)
    sinks = attention_sinks.joined(found, sunk, of_keys)
    space = _score_space(found)
    last_axis(found.node(softmax), len(space))
    known_casts(found)
    made: list[NewNode] = []
    key, also = key_of(found, found["kt"], len(space), made)
    also += turn
    turned = bool(made)
    query = query_of(found, made)
    _masks_alike(found)
    mask = mask_of(found, space, made)
    if sinks:
        attention_sinks.check(found, sunk, of_keys, space)
    if len(space) != 4:
        operands = [query, key, found["v"], *mask]
        return _other_rank(found, space, operands, result, [made, behind], also)
    value = found["v"]
    copies: list[gs.Node] = []
    spread: list[gs.Node] = []
    if not turned:
        key, value, copies = without_copies(found, key, found["v"])
    attrs = _attributes(found, static(space[1], "heads", found.anchor), heads_of(found, value))
    if sinks:
        key, value, whole = attention_sinks.with_sink(found, key, value, mask, made)
        mask = (whole,)
    else:
        mask, attrs["causal"], spread = constant_mask.settled(found.work, mask, space)
    made.append(NewNode("FlashAttention", (query, key, value, *mask), (result,), attrs))
    biases = (known_biases(found) if found.has("fill") else None) or []
    shared = [*spread, *biases, *_for_other_values(found)]
    return Replacement([*made, *behind], also + copies + spread + biases, shared)


def _for_other_values(found: Found) -> list[gs.Node]:
    """Return what makes the weights, where all that reads these are products with values alike.

    Differential attention has two halves of values for one softmax; each becomes a node.
    """
    probabilities, values = found.anchor.inputs
    inside = {id(node) for node in found.nodes}
    others = [user for user in probabilities.outputs if id(user) not in inside]
    before = [node for node in found.nodes if node is not found.anchor]
    readers = [user for node in before for t in node.outputs for user in t.outputs]
    alone = all(id(user) in inside or any(user is o for o in others) for user in readers)
    alike = all(
        user.op == "MatMul"
        and user.inputs[0] is probabilities
        and found.work.shape(user.inputs[1]) == found.work.shape(values)
        for user in others
    )
    return before if others and alone and alike and not _leave(found, before) else []


def _leave(found: Found, nodes: list[gs.Node]) -> bool:
    return any(found.work.is_output(tensor) for node in nodes for tensor in node.outputs)


def _result(found: Found, dtype: int) -> tuple[gs.Tensor, list[NewNode], list[gs.Node]]:
    """Return what the fused node writes, what widens that to fp32 behind it, and what is taken in.

    torch widens what an fp32 mask meets: the probabilities stay in fp32, and v is cast to meet
    them. The result is then in fp32, and no more precise than v. A Transpose behind it turns what
    is not widened yet.
    """
    result, work = found.anchor.outputs[0], found.work
    wide = {"to": onnx.TensorProto.FLOAT}
    product = work.dtype(found.node(scores).outputs[0])
    if work.dtype(result) != wide["to"] or dtype not in HALVES or product != dtype:
        same_type(found, result, dtype)
        return result, [], []
    narrow = work.fresh(result, "narrow", dtype)
    (reader,) = result.outputs if len(result.outputs) == 1 else (None,)
    if reader is None or reader.op != "Transpose" or work.is_output(result):
        return narrow, [NewNode("Cast", (narrow,), (result,), wide, "")], []
    turned = work.fresh(result, "turned", dtype)
    turn = NewNode("Transpose", (narrow,), (turned,), dict(reader.attrs), "")
    cast = NewNode("Cast", (turned,), (reader.outputs[0],), wide, "")
    return narrow, [turn, cast], [reader]


def _other_rank(
    found: Found,
    space: Shape,
    operands: list[gs.Tensor],
    result: gs.Tensor,
    around: list[list[NewNode]],
    also: list[gs.Node],
) -> Replacement:
    """Take tensors of rank 3, or of more than 4, as [batch, heads, m, n] for the one node."""
    axes = Folded.of(found, space[:-2], found.shape("kt")[:-2])
    made, behind = around
    inputs = [axes.operand(found, *pair, made) for pair in enumerate(operands)]
    whole = found.work.fresh(result, "four_axes")
    attrs = _attributes(found, axes.heads, axes.kv_heads)
    made.append(NewNode("FlashAttention", tuple(inputs), (whole,), attrs))
    made.append(axes.restored(found, whole, result))
    return Replacement([*made, *behind], also)


def _score_space(found: Found) -> Shape:
    """Return the scores' shape, after checking that q, kt, and v agree on it.

    That is [batch, heads, queries, keys], or [batch * heads, queries, keys].
    """
    q, kt, v = (found.shape(name) for name in ("q", "kt", "v"))
    if len(q) < 3 or not len(q) == len(kt) == len(v):
        raise Miss(
            f"q, k^T, v have ranks {len(q)}, {len(kt)}, {len(v)}, want 4 for all",
            found.node(scores),
        )
    static(q[-1], "the head size", found.node(scores))
    if len(q) == 4:
        static(q[1], "the number of heads", found.node(scores))
    front = q[:-2]
    # One head of k and v serves all of q; or, of five axes, each serves a group.
    shared = (*front[:-1], 1) if len(q) in (4, 5) and kt[-3] == 1 else front
    pairs = [*zip(kt, (*shared, q[-1]), strict=False), *zip(v, (*shared, kt[-1]), strict=False)]
    # Five axes become four by the sizes of q's: what may be a broadcast there is none behind it.
    known = len(q) < 5 or all(t[:-2] == shared for t in (kt, v))
    if not known or not all(may_equal(have, want) for have, want in pairs):
        raise Miss(f"q {text(q)}, k^T {text(kt)}, and v {text(v)} do not agree", found.node(scores))
    return (*front, q[-2], kt[-1])


def _attributes(found: Found, heads: int, kv_heads: int) -> dict[str, object]:
    if heads % kv_heads:
        raise Miss(f"{heads} heads do not divide by {kv_heads}", found.anchor)
    scale = scale_of(found, "q", "k", "scores")
    if not 0 < abs(scale) < _LARGEST:
        raise Miss(f"the scale is {scale}", found.node(scores))
    if found.has("zero") and found.scalar("zero") != 0:
        raise Miss("its NaN guard writes something but 0", found.reader(found["zero"]))
    return {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": scale,
        "causal": 0,
        "window": 0,
        "softcap": _softcap(found),
        "nan_guard": HIDDEN if found.has("again") else int(found.has(guard)),
        "layout": "BHSD",
    }


def _masks_alike(found: Found) -> None:
    """Refuse probabilities that are set to 0 elsewhere than where the scores were masked."""
    if not found.has("again"):
        return
    name = "keep" if found.has(kept_again) else "drop"
    same = found.has(name) and found[name] is found["again"]
    if not same or found.has("mask") or found.has("floor"):
        reason = "sets other probabilities to 0 than those whose scores it masks"
        raise Miss(reason, found.reader(found["zero"]))
    for bias in (found[part] for part in ("first_bias", "bias") if found.has(part)):
        value = found.work.facts.value(bias)
        # One that hides as well, as causal masks do, leaves the fill a share of such a row.
        if value is None or not bool((np.asarray(value, np.float64) > REACHABLE / 2).all()):
            reason = f"adds {bias.name}, which may hide keys too, to scores it masks twice"
            raise Miss(reason, found.reader(bias))


def _softcap(found: Found) -> float:
    if not found.has("softcap"):
        return 0.0
    cap = found.scalar("softcap")
    ratio = scale_of(found, "cap")
    over = 1 / ratio if ratio else math.inf
    if not is_close(found, "softcap", over) or cap <= 0:
        raise Miss(f"divides by {over:g} before tanh and multiplies by {cap:g}", found.node(bent))
    return cap


FUSION = Fusion("FlashAttention", ("MatMul",), context, _build, near=2, key="Softmax")
