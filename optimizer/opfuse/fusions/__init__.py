"""Every fusion, in the order in which they are applied; the order is meaning.

Norms come first because their sums and their outputs are what everything else reads, LayerNorm
before RmsNorm, which is what it is behind its centring, and each with its weights before the same
without; rope before the sums of norms, since its own sum is no residual where a norm of q or k
reads it; attention before the softmax inside it, and gates before GEMM epilogues, so that the wider
takes what the narrower would claim; merges last, since they follow fused nodes back to the
projections.
"""

from opfuse.fusions import (
    add_layer_norm,
    add_rms_norm,
    all_reduce_add_norm,
    attention,
    attention_layout,
    attention_lengths,
    attention_op,
    attention_positions,
    attention_slopes,
    gate_up_merge,
    gated_act,
    gated_gemm,
    gelu,
    gemm_act,
    group_norm_silu,
    last_token,
    layer_norm,
    linear_gemm,
    masked_softmax,
    packed_attention,
    patch_product,
    plain_norms,
    qk_norm_rope,
    qkv_merge,
    rms_norm,
    rope,
    rope_op,
    rope_parts,
    rope_rest,
)

FUSIONS = (
    layer_norm.FUSION,
    plain_norms.LAYER_NORM,
    rms_norm.FUSION,
    plain_norms.RMS_NORM,
    rope.FUSION,
    rope_op.FUSION,
    rope_parts.FUSION,
    rope_rest.FUSION,
    add_rms_norm.FUSION,
    add_layer_norm.FUSION,
    all_reduce_add_norm.FUSION,
    group_norm_silu.FUSION,
    attention.FUSION,
    attention_op.FUSION,
    masked_softmax.FUSION,
    gated_act.FUSION,
    gate_up_merge.FUSION,
    gemm_act.FUSION,
    gelu.FUSION,
    qkv_merge.FUSION,
    last_token.FUSION,
)

# Wider still, and only for an engine of a library that has them: they take fused nodes together,
# so the fused graph and its counts stay what the model is made of.
WIDENINGS = (
    attention_positions.FUSION,
    attention_lengths.FUSION,
    attention_slopes.FUSION,
    qk_norm_rope.FUSION,
    packed_attention.FUSION,
    attention_layout.FUSION,
    gated_gemm.FUSION,
    patch_product.FUSION,
    linear_gemm.FUSION,
)

DEFINITIONS = {
    definition.op: definition
    for definition in (
        rms_norm.DEFINITION,
        add_rms_norm.DEFINITION,
        add_layer_norm.DEFINITION,
        all_reduce_add_norm.DEFINITION,
        group_norm_silu.DEFINITION,
        attention.DEFINITION,
        packed_attention.DEFINITION,
        masked_softmax.DEFINITION,
        rope.DEFINITION,
        qk_norm_rope.DEFINITION,
        gated_act.DEFINITION,
        gated_gemm.DEFINITION,
        gemm_act.DEFINITION,
    )
}

# Standard operators that count as recognised wherever they stand alone in the fused graph.
STANDARD = ("LayerNormalization", "Gelu")
# Rooms that leave only standard operators; they are counted by what they did.
MERGES = (qkv_merge.KIND, gate_up_merge.KIND, last_token.KIND)
