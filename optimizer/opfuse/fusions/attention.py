"""FlashAttention: y = softmax(scale * q k^T + mask) v (Vaswani et al. 2017; Dao et al. 2022).

q is [batch, num_heads, queries, head_size]; k and v are [batch, kv_num_heads, keys, head_size].
With fewer key/value heads each serves a group of query heads, and the copies that exporters make
of them are dropped. ``nan_guard`` keeps what a fully masked row gives where the original turns NaN
into 0.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_body import DEFINITION
from opfuse.fusions.guards import (
    FLOATS,
    broadcasts,
    floating,
    last_axis,
    same_type,
    static,
    text,
)
from opfuse.fusions.repeat_kv import unrepeat
from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Pattern, Var, any_of, maybe_cast, op

__all__ = ["DEFINITION", "FUSION", "fits", "heads_of", "without_copies"]

TRANSPOSED = (0, 1, 3, 2)


def scaled(x: Pattern, name: str) -> Pattern:
    """Return the pattern of ``x``, times or over a constant, or bare."""
    return any_of(op.Mul(x, Const(f"{name}_times")), op.Div(x, Const(f"{name}_over")), x)


scores = op.MatMul(scaled(Var("q"), "q"), scaled(Var("kt"), "k"))
logits = scaled(maybe_cast(scores), "scores")
bent = op.Mul(op.Tanh(scaled(logits, "cap")), Const("softcap"))
capped = any_of(bent, logits)
kept = op.Where(Var("keep"), capped, Const("fill"))
dropped = op.Where(Var("drop"), Const("fill"), capped)
masked = any_of(
    op.Add(any_of(op.Add(capped, Var("bias")), capped), Var("mask")), kept, dropped, capped
)
softmax = op.Softmax(maybe_cast(masked))
weights = maybe_cast(softmax)
guard = op.Where(op.IsNaN(weights), Const("zero"), weights)
context = op.MatMul(maybe_cast(any_of(guard, weights)), Var("v"))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "q", "kt", "v")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    space = _score_space(found)
    last_axis(found.node(softmax), 4)
    source, perm = _untransposed(found["kt"])
    made: list[NewNode] = []
    if perm:
        key, value = found.work.fresh(source, "keys"), found["v"]
        copies: list[gs.Node] = []
        made.append(NewNode("Transpose", (source,), (key,), {"perm": list(perm)}, ""))
    else:
        key, value, copies = without_copies(found, source, found["v"])
    mask = _mask(found, space, made)
    attrs = _attributes(found, space[1], heads_of(found, value))
    made.append(NewNode("FlashAttention", (found["q"], key, value, *mask), (result,), attrs))
    return Replacement(made, _transposes(found, source) + copies)


def without_copies(
    found: Found, key: gs.Tensor, value: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor, list[gs.Node]]:
    """Return k and v before they were copied for their groups, and the nodes that copy them.

    Raises:
        Miss: A number of heads is not known.
    """
    few_keys, copies = unrepeat(found.work, key)
    few_values, value_copies = unrepeat(found.work, value)
    if heads_of(found, few_keys) != heads_of(found, few_values):
        return key, value, []
    return few_keys, few_values, copies + value_copies


def _score_space(found: Found) -> tuple[Dim, int, Dim, Dim]:
    """Return [batch, heads, queries, keys], after checking that q, kt, and v agree on them."""
    q, kt, v = (found.shape(name) for name in ("q", "kt", "v"))
    if not len(q) == len(kt) == len(v) == 4:
        raise Miss(
            f"q, k^T, v have ranks {len(q)}, {len(kt)}, {len(v)}, want 4", found.node(scores)
        )
    heads = static(q[1], "the number of heads", found.node(scores))
    static(q[3], "the head size", found.node(scores))
    if kt[:3] != (q[0], heads, q[3]) or v[:3] != (q[0], heads, kt[3]):
        raise Miss(f"q {text(q)}, k^T {text(kt)}, and v {text(v)} do not agree", found.node(scores))
    return q[0], heads, q[2], kt[3]


def _untransposed(tensor: gs.Tensor) -> tuple[gs.Tensor, tuple[int, ...] | None]:
    """Return a tensor, and the permutation that makes of it the transpose of ``tensor``.

    None stands for no permutation.
    """
    node = producer(tensor)
    if node is None or node.op != "Transpose" or len(node.attrs.get("perm", ())) != 4:
        return tensor, TRANSPOSED
    a, b, c, d = (int(axis) for axis in node.attrs["perm"])
    return node.inputs[0], None if (a, b, d, c) == (0, 1, 2, 3) else (a, b, d, c)


def _transposes(found: Found, source: gs.Tensor) -> list[gs.Node]:
    node = producer(found["kt"])
    return [] if node is None or source is found["kt"] else [node]


def heads_of(found: Found, tensor: gs.Tensor) -> int:
    """Return how many heads a [batch, heads, keys, head_size] tensor has.

    Raises:
        Miss: That is not known, or the rank is another.
    """
    shape = found.work.shape(tensor)
    if shape is None or len(shape) != 4:
        raise Miss(f"{tensor.name} is {text(shape)}, want rank 4", found.anchor)
    return static(shape[1], "the number of key/value heads", found.anchor)


def _attributes(found: Found, heads: int, kv_heads: int) -> dict[str, object]:
    if heads % kv_heads:
        raise Miss(f"{heads} heads do not divide by {kv_heads}", found.anchor)
    scale = 1.0
    for name in ("q", "k", "scores"):
        if found.has(f"{name}_times"):
            scale *= found.scalar(f"{name}_times")
        if found.has(f"{name}_over"):
            scale /= found.scalar(f"{name}_over")
    if not math.isfinite(scale) or scale == 0:
        raise Miss(f"the scale is {scale}", found.node(scores))
    if found.has("zero") and found.scalar("zero") != 0:
        raise Miss("its NaN guard writes something but 0", found.node(guard))
    return {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": scale,
        "causal": 0,
        "softcap": _softcap(found),
        "nan_guard": int(found.has(guard)),
        "layout": "BHSD",
    }


def _softcap(found: Found) -> float:
    if not found.has("softcap"):
        return 0.0
    cap = found.scalar("softcap")
    over = (
        found.scalar("cap_over")
        if found.has("cap_over")
        else (1 / found.scalar("cap_times") if found.has("cap_times") else 1.0)
    )
    if not math.isclose(cap, over, rel_tol=1e-3) or cap <= 0:
        raise Miss(f"divides by {over:g} before tanh and multiplies by {cap:g}", found.node(bent))
    return cap


def _mask(found: Found, space: Shape, made: list[NewNode]) -> tuple[gs.Tensor, ...]:
    """Return the additive mask, or nothing; nodes that compute it are added to ``made``."""
    if found.has("mask"):
        tensor = found["mask"]
        if found.has("bias"):
            total = found.work.fresh(tensor, "with_bias")
            made.append(NewNode("Add", (found["bias"], tensor), (total,), {}, ""))
            fits(found, found["bias"], space)
            fits(found, tensor, space)
            return (total,)
    elif found.has("fill"):
        tensor = _filled(found, made)
        fits(found, found["keep" if found.has("keep") else "drop"], space)
        return (tensor,)
    else:
        return ()
    fits(found, tensor, space)
    if found.work.dtype(tensor) not in FLOATS:
        raise Miss(f"mask {tensor.name} is not floating-point", producer(tensor))
    return (tensor,)


def _filled(found: Found, made: list[NewNode]) -> gs.Tensor:
    """Turn where(keep, scores, fill) into scores + where(keep, 0, fill).

    The two agree where fill absorbs the scores: always for -inf, and for the lowest number of a
    type but in fully masked rows of fp16, which the proof tries.
    """
    fill = found["fill"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.work.dtype(fill) or 1)
    if found.scalar("fill") > -6e4:
        raise Miss(f"masks with {found.scalar('fill'):g}, which scores may reach", found.anchor)
    zero = found.work.constant(fill, "zero", np.zeros((), dtype))
    mask = found.work.fresh(fill, "mask")
    choice = (found["keep"], zero, fill) if found.has("keep") else (found["drop"], fill, zero)
    made.append(NewNode("Where", choice, (mask,), {}, ""))
    return mask


def fits(found: Found, tensor: gs.Tensor, space: Shape) -> None:
    """Refuse a mask that does not provably broadcast to [batch, heads, queries, keys]."""
    shape = found.work.shape(tensor)
    if shape is None or not broadcasts(shape, space):
        raise Miss(
            f"mask {tensor.name} is {text(shape)}, which does not provably broadcast to the "
            f"scores' {text(space)}",
            producer(tensor),
        )


FUSION = Fusion("FlashAttention", ("MatMul",), context, _build, near=4)
