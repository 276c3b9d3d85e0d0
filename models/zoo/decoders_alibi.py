"""Decoders without position embeddings: ALiBi adds a slope to the scores."""

from __future__ import annotations

import transformers as hf

from models.zoo.case import Case
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS, causal_lm
from models.zoo.truth import act, attention, norms, qkv, truth


def bloom(implementation: str) -> Case:
    config = hf.BloomConfig(
        vocab_size=256,
        hidden_size=64,
        n_layer=LAYERS,
        n_head=HEADS,
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.BloomForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, [*CAUSAL, "alibi"]),
            norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS),
            qkv(LAYERS, "packed", layout="per head q|k|v"),
            acts=act("gelu_tanh", LAYERS),
        ),
        positions=False,
    )


def mpt(implementation: str) -> Case:
    config = hf.MptConfig(
        vocab_size=256,
        d_model=64,
        n_heads=HEADS,
        n_layers=LAYERS,
        max_seq_len=128,
        attn_implementation=implementation,
    )
    return causal_lm(
        hf.MptForCausalLM(config),
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, [*CAUSAL, "alibi"]),
            norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, bias=False),
            qkv(LAYERS, "packed", "none", layout="q|k|v"),
            acts=act("gelu_erf", LAYERS, bias=False),
        ),
        positions=False,
    )
