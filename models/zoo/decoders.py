"""Decoders whose attention and feed-forward run one after the other."""

from __future__ import annotations

from typing import Any

import transformers as hf

from models.zoo.case import Case
from models.zoo.language import CAUSAL, GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, causal_lm
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth


def _cores(mask: list[str] | None = None, kv_heads: int = KV_HEADS, **more: Any) -> dict[str, Any]:
    return attention(LAYERS, HEADS, HEAD_DIM, mask or CAUSAL, kv_heads=kv_heads, **more)


def _rms(count: int = 2 * LAYERS + 1, add_norm: int = 2 * LAYERS, **more: Any) -> dict[str, Any]:
    return norms("RMSNorm", count, add_norm=add_norm, bias=False, **more)


def qwen2(implementation: str) -> Case:
    sizes = {key: value for key, value in GROUPED.items() if key != "head_dim"}
    config = hf.Qwen2Config(**sizes, attn_implementation=implementation)
    return causal_lm(
        hf.Qwen2ForCausalLM(config),
        truth(
            LAYERS,
            _cores(),
            _rms(),
            qkv(LAYERS),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def qwen3(implementation: str) -> Case:
    config = hf.Qwen3Config(**GROUPED, attn_implementation=implementation)
    return causal_lm(
        hf.Qwen3ForCausalLM(config),
        truth(
            LAYERS,
            _cores(),
            _rms(4 * LAYERS + 1, qk=2 * LAYERS),
            qkv(LAYERS, bias="none"),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def mistral(implementation: str) -> Case:
    config = hf.MistralConfig(**GROUPED, sliding_window=4, attn_implementation=implementation)
    return causal_lm(
        hf.MistralForCausalLM(config),
        truth(
            LAYERS,
            _cores([*CAUSAL, "sliding_window"], window=4),
            _rms(),
            qkv(LAYERS, bias="none"),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def gemma(implementation: str) -> Case:
    config = hf.GemmaConfig(
        **{**GROUPED, "num_key_value_heads": 1}, attn_implementation=implementation
    )
    return causal_lm(
        hf.GemmaForCausalLM(config),
        truth(
            LAYERS,
            _cores(kv_heads=1),
            _rms(one_plus_weight=True),
            qkv(LAYERS, bias="none"),
            glu=glu("geglu_tanh", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def gemma2(implementation: str) -> Case:
    config = hf.Gemma2Config(
        **GROUPED,
        query_pre_attn_scalar=HEAD_DIM,
        sliding_window=4,
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.Gemma2ForCausalLM(config),
        truth(
            LAYERS,
            _cores([*CAUSAL, "sliding_window"], window=4, softcap=50.0),
            _rms(4 * LAYERS + 1, placement="sandwich", one_plus_weight=True),
            qkv(LAYERS, bias="none"),
            glu=glu("geglu_tanh", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def gemma3(implementation: str) -> Case:
    config = hf.Gemma3TextConfig(
        **GROUPED,
        query_pre_attn_scalar=HEAD_DIM,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.Gemma3ForCausalLM(config),
        truth(
            LAYERS,
            _cores([*CAUSAL, "sliding_window"], window=4),
            _rms(6 * LAYERS + 1, placement="sandwich", qk=2 * LAYERS, one_plus_weight=True),
            qkv(LAYERS, bias="none"),
            glu=glu("geglu_tanh", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def phi3(implementation: str) -> Case:
    sizes = {key: value for key, value in GROUPED.items() if key != "head_dim"}
    config = hf.Phi3Config(**sizes, attn_implementation=implementation)
    return causal_lm(
        hf.Phi3ForCausalLM(config),
        truth(
            LAYERS,
            _cores(),
            _rms(),
            qkv(LAYERS, "packed", "none", layout="q|k|v"),
            glu=glu("swiglu", LAYERS, packed=True),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def opt(implementation: str) -> Case:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    config = hf.OPTConfig(
        **sizes, ffn_dim=128, word_embed_proj_dim=64, attn_implementation=implementation
    )
    count = 2 * LAYERS + 1
    return causal_lm(
        hf.OPTForCausalLM(config),
        truth(
            LAYERS,
            _cores(kv_heads=HEADS, scale_at="query"),
            norms("LayerNorm", count, add_norm=2 * LAYERS, embedding=1),
            qkv(LAYERS),
            acts=act("relu", LAYERS),
        ),
        positions=False,
    )


def starcoder2(implementation: str) -> Case:
    sizes = {key: value for key, value in GROUPED.items() if key != "head_dim"}
    config = hf.Starcoder2Config(**sizes, sliding_window=None, attn_implementation=implementation)
    return causal_lm(
        hf.Starcoder2ForCausalLM(config),
        truth(
            LAYERS,
            _cores(),
            norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS),
            qkv(LAYERS),
            acts=act("gelu_tanh", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def olmo2(implementation: str) -> Case:
    sizes = {key: value for key, value in GROUPED.items() if key != "head_dim"}
    config = hf.Olmo2Config(**sizes, attn_implementation=implementation)
    return causal_lm(
        hf.Olmo2ForCausalLM(config),
        truth(
            LAYERS,
            _cores(),
            # The branch is normalised and then added: only the last norm follows an Add.
            _rms(4 * LAYERS + 1, add_norm=1, placement="post_branch", qk=2 * LAYERS),
            qkv(LAYERS, bias="none"),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def gpt_oss(implementation: str) -> Case:
    config = hf.GptOssConfig(
        **GROUPED,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        experts_implementation="batched_mm",
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.GptOssForCausalLM(config),
        truth(
            LAYERS,
            _cores([*CAUSAL, "sliding_window", "sinks"], window=4, sinks=True),
            _rms(),
            qkv(LAYERS),
            # Its experts clamp the gate and interleave it with up: no gated block of ours.
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )
