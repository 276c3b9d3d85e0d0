"""Decoders of 2024 and later: sandwich and post norms, layers without rope, latent attention."""

from __future__ import annotations

from typing import Any

import transformers as hf

from models.zoo.case import Case
from models.zoo.language import CAUSAL, GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, causal_lm
from models.zoo.truth import attention, glu, norms, qkv, rope, truth

_NO_HEAD_DIM = {key: value for key, value in GROUPED.items() if key != "head_dim"}


def _partial(factor: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}


def _llama_like(
    *,
    attn: dict[str, Any] | None = None,
    norm: dict[str, Any] | None = None,
    bias: str = "none",
    gate: dict[str, Any] | None = None,
    turned: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """RMSNorm before each branch, grouped heads, SwiGLU; what differs is given."""
    return truth(
        LAYERS,
        attn or attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS),
        norm or norms("RMSNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, bias=False),
        qkv(LAYERS, bias=bias),
        glu=gate or glu("swiglu", LAYERS),
        rope=turned or rope(2 * LAYERS, HEAD_DIM),
    )


def glm4(implementation: str) -> Case:
    config = hf.Glm4Config(
        **GROUPED, rope_parameters=_partial(0.5), attn_implementation=implementation
    )
    content = _llama_like(
        norm=norms(
            "RMSNorm", 4 * LAYERS + 1, add_norm=2 * LAYERS, bias=False, placement="sandwich"
        ),
        bias="all",
        gate=glu("swiglu", LAYERS, packed=True),
        turned=rope(2 * LAYERS, HEAD_DIM // 2, partial=True, style="interleaved"),
    )
    return causal_lm(hf.Glm4ForCausalLM(config), content)


def granite(implementation: str) -> Case:
    """Each branch, the embeddings, and the logits have a factor of their own."""
    config = hf.GraniteConfig(
        **_NO_HEAD_DIM,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=1 / HEAD_DIM,
        attn_implementation=implementation,
    )
    scores = attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS, scale=1 / HEAD_DIM)
    return causal_lm(hf.GraniteForCausalLM(config), _llama_like(attn=scores))


def smollm3(implementation: str) -> Case:
    """Every second layer has no rope."""
    config = hf.SmolLM3Config(
        **_NO_HEAD_DIM, no_rope_layer_interval=2, attn_implementation=implementation
    )
    content = _llama_like(turned=rope(LAYERS, HEAD_DIM))
    return causal_lm(hf.SmolLM3ForCausalLM(config), content)


def ernie4_5(implementation: str) -> Case:
    config = hf.Ernie4_5Config(**GROUPED, attn_implementation=implementation)
    content = _llama_like(turned=rope(2 * LAYERS, HEAD_DIM, style="interleaved"))
    return causal_lm(hf.Ernie4_5ForCausalLM(config), content)


def helium(implementation: str) -> Case:
    config = hf.HeliumConfig(**GROUPED, attn_implementation=implementation)
    content = _llama_like(turned=rope(2 * LAYERS, HEAD_DIM, style="interleaved"))
    return causal_lm(hf.HeliumForCausalLM(config), content)


def exaone4(implementation: str) -> Case:
    """The branch is normalised and then added; full attention has no rope beside a window."""
    config = hf.Exaone4Config(
        **_NO_HEAD_DIM,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation=implementation,
    )
    mask = [*CAUSAL, "sliding_window"]
    content = _llama_like(
        attn=attention(LAYERS, HEADS, HEAD_DIM, mask, kv_heads=KV_HEADS, window=4),
        norm=norms(
            "RMSNorm",
            4 * LAYERS + 1,
            add_norm=1,
            placement="post_branch",
            qk=2 * LAYERS,
            bias=False,
        ),
        turned=rope(LAYERS, HEAD_DIM),
    )
    return causal_lm(hf.Exaone4ForCausalLM(config), content)


def hunyuan_dense(implementation: str) -> Case:
    """Norms of q and k behind the rope."""
    config = hf.HunYuanDenseV1Config(**GROUPED, attn_implementation=implementation)
    norm = norms("RMSNorm", 4 * LAYERS + 1, add_norm=2 * LAYERS, qk=2 * LAYERS, bias=False)
    return causal_lm(hf.HunYuanDenseV1ForCausalLM(config), _llama_like(norm=norm))


def cohere2(implementation: str) -> Case:
    """A parallel block; rope only where there is a window."""
    config = hf.Cohere2Config(
        **_NO_HEAD_DIM,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation=implementation,
    )
    mask = [*CAUSAL, "sliding_window"]
    content = _llama_like(
        attn=attention(LAYERS, HEADS, HEAD_DIM, mask, kv_heads=KV_HEADS, window=4),
        norm=norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel", bias=False),
        turned=rope(LAYERS, HEAD_DIM, style="interleaved"),
    )
    return causal_lm(hf.Cohere2ForCausalLM(config), content)


def stablelm(implementation: str) -> Case:
    config = hf.StableLmConfig(
        **_NO_HEAD_DIM, rope_parameters=_partial(0.25), attn_implementation=implementation
    )
    content = _llama_like(
        norm=norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS),
        turned=rope(2 * LAYERS, HEAD_DIM // 4, partial=True),
    )
    return causal_lm(hf.StableLmForCausalLM(config), content)


def deepseek_v3(implementation: str) -> Case:
    """Latent attention, and dense feed-forwards only: experts are no pattern of ours.

    q and k have 16 + 8 columns and v has 16; the rope turns the 8, which all heads of k share. No
    group of three projections reads the same input: q and kv come from latents of their own.
    """
    config = hf.DeepseekV3Config(
        **SIZES,
        num_key_value_heads=HEADS,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=LAYERS,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, 24, CAUSAL, value_head_dim=16),
        norms("RMSNorm", 4 * LAYERS + 1, add_norm=2 * LAYERS, bias=False, latent=2 * LAYERS),
        qkv(0, bias="none"),
        glu=glu("swiglu", LAYERS),
        rope=rope(2 * LAYERS, 8, partial=True, style="interleaved"),
    )
    return causal_lm(hf.DeepseekV3ForCausalLM(config), content)
