"""Decoders whose attention and feed-forward both read the block's input (parallel residual)."""

from __future__ import annotations

import transformers as hf

from models.zoo.case import Case
from models.zoo.language import CAUSAL, GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, causal_lm
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth

_HALF = HEAD_DIM // 2


def phi(implementation: str) -> Case:
    config = hf.PhiConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.PhiForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
            norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel"),
            qkv(LAYERS),
            acts=act("gelu_tanh", LAYERS),
            rope=rope(2 * LAYERS, _HALF, partial=True),
        ),
    )


def gpt_neox(implementation: str) -> Case:
    config = hf.GPTNeoXConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
        attn_implementation=implementation,
    )
    shared = {"placement": "parallel", "add_norm_shared": LAYERS - 1}
    return causal_lm(
        hf.GPTNeoXForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
            norms("LayerNorm", 2 * LAYERS + 1, add_norm=LAYERS, **shared),
            qkv(LAYERS, "packed", layout="per head q|k|v"),
            acts=act("gelu_erf", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM // 4, partial=True),
        ),
    )


def gptj(implementation: str) -> Case:
    config = hf.GPTJConfig(
        vocab_size=256,
        n_positions=128,
        n_embd=64,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=128,
        rotary_dim=_HALF,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.GPTJForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
            norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel"),
            qkv(LAYERS, bias="none"),
            acts=act("gelu_tanh", LAYERS),
            rope=rope(2 * LAYERS, _HALF, partial=True, style="interleaved"),
        ),
    )


def falcon(implementation: str) -> Case:
    config = hf.FalconConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_hidden_size=128,
        max_position_embeddings=128,
        multi_query=True,
        parallel_attn=True,
        new_decoder_architecture=False,
        bias=False,
        alibi=False,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.FalconForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=1),
            norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel"),
            qkv(LAYERS, "packed", "none", layout="q heads|k|v"),
            acts=act("gelu_erf", LAYERS, bias=False),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def cohere(implementation: str) -> Case:
    sizes = {key: value for key, value in GROUPED.items() if key != "head_dim"}
    config = hf.CohereConfig(**sizes, attn_implementation=implementation)
    return causal_lm(
        hf.CohereForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS),
            norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel", bias=False),
            qkv(LAYERS, bias="none"),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM, style="interleaved"),
        ),
    )
