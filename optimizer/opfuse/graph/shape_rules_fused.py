"""Shape rules of the fused operators, domain ``opfuse``."""

from __future__ import annotations

from opfuse.graph.dims import Dim
from opfuse.graph.facts import Fact, Op, Rule
from opfuse.graph.shape_rules_product import matmul_shape


def _like_first(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype())


def _norm_and_sum(op: Op) -> tuple[Fact, ...]:
    return Fact(op.shape(), op.dtype()), Fact(op.shape(), op.dtype())


def _all_gather(op: Op) -> Fact:
    shape = op.shape()
    if shape is None:
        return Fact(None, op.dtype())
    axis = int(op.attr("axis")) % len(shape)
    whole = shape[axis] * int(op.attr("group_size"))
    return Fact((*shape[:axis], whole, *shape[axis + 1 :]), op.dtype())


def _gemm(op: Op) -> Fact:
    return Fact(matmul_shape(op.shape(), op.shape(1)), op.dtype())


def _gated_gemm(op: Op) -> Fact:
    shape = matmul_shape(op.shape(), op.shape(1))
    return Fact(None if shape is None else (*shape[:-1], shape[-1] // 2), op.dtype())


def _gated_act(op: Op) -> Fact:
    shape = op.shape()
    if shape is None or op.has(1):
        return Fact(shape, op.dtype())
    return Fact((*shape[:-1], shape[-1] // 2), op.dtype())


def _qk_norm_rope(op: Op) -> Fact | tuple[Fact, ...]:
    """q, k, and v as [batch, heads, seq, size], from [batch, seq, all heads * size]."""
    shape = op.shape()
    if shape is None or len(shape) != 3:
        return Fact(None, op.dtype())
    heads, few = int(op.attr("num_heads")), int(op.attr("kv_num_heads"))
    size: Dim = shape[2] // (heads + 2 * few)
    return tuple(Fact((shape[0], count, shape[1], size), op.dtype()) for count in (heads, few, few))


def _flash_attention(op: Op) -> Fact:
    """Q is [batch, seq, hidden] or [batch, heads, seq, head]; v's last axis is the output's.

    With four axes ``layout`` may say that heads and positions stand the other way round.
    """
    q, v = op.shape(), op.shape(2)
    if q is None or v is None:
        return Fact(q, op.dtype())
    last: Dim = v[-1]
    if len(q) == 3:
        last = last * int(op.attr("num_heads")) // int(op.attr("kv_num_heads"))
    axes = str(op.attr("layout", "BHSD")).split(",")
    same = axes[0] == axes[-1]
    return Fact((*(q[:-1] if same else (q[0], q[2], q[1])), last), op.dtype())


def _packed_attention(op: Op) -> Fact:
    """Y as [batch, seq, heads, size], from [batch, seq, all heads * size]."""
    shape, heads = op.shape(), int(op.attr("num_heads"))
    if shape is None or len(shape) != 3:
        return Fact(None, op.dtype())
    size: Dim = shape[2] // (heads + 2 * int(op.attr("kv_num_heads")))
    return Fact((*shape[:2], heads, size), op.dtype())


RULES: dict[str, Rule] = {
    "AddLayerNorm": _norm_and_sum,
    "AddRmsNorm": _norm_and_sum,
    "AllGather": _all_gather,
    "AllReduce": _like_first,
    "AllReduceAddNorm": _norm_and_sum,
    "FlashAttention": _flash_attention,
    "GatedAct": _gated_act,
    "GatedGemm": _gated_gemm,
    "GemmAct": _gemm,
    "GroupNormSilu": _like_first,
    "MaskedSoftmax": _like_first,
    "PackedAttention": _packed_attention,
    "QkNormRope": _qk_norm_rope,
    "RmsNorm": _like_first,
    "Rope": _like_first,
}
