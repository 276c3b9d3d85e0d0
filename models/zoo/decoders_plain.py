"""Decoders with a feed-forward of two linear layers, and other forms of packed projections."""

from __future__ import annotations

from typing import Any

import transformers as hf

from models.zoo.case import Case
from models.zoo.language import CAUSAL, GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, causal_lm
from models.zoo.truth import act, attention, norms, qkv, rope, truth

_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def _pre_norm(**more: Any) -> dict[str, Any]:
    return norms("LayerNorm", 2 * LAYERS + 1, **{"add_norm": 2 * LAYERS, **more})


def gpt_bigcode(implementation: str) -> Case:
    """All heads of q share one of k and v."""
    config = hf.GPTBigCodeConfig(
        vocab_size=256,
        n_positions=128,
        n_embd=64,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=1),
        _pre_norm(embedding=1),
        qkv(LAYERS, "packed", layout="q heads|k|v"),
        acts=act("gelu_tanh", LAYERS),
    )
    return causal_lm(hf.GPTBigCodeForCausalLM(config), content)


def codegen(implementation: str) -> Case:
    """A parallel block whose packed projection is cut into four, each q, v, k."""
    config = hf.CodeGenConfig(
        vocab_size=256,
        n_positions=128,
        n_ctx=128,
        n_embd=64,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=128,
        rotary_dim=8,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
        norms("LayerNorm", LAYERS + 1, add_norm=LAYERS, placement="parallel"),
        qkv(LAYERS, "packed", "none", layout="4 times q|v|k"),
        acts=act("gelu_tanh", LAYERS),
        rope=rope(2 * LAYERS, 8, partial=True, style="interleaved"),
    )
    return causal_lm(hf.CodeGenForCausalLM(config), content)


def persimmon(implementation: str) -> Case:
    """Squared ReLU, which GemmAct does not have; norms of q and k over the head with a bias."""
    config = hf.PersimmonConfig(**SIZES, rope_parameters=_HALF, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
        norms("LayerNorm", 4 * LAYERS + 1, add_norm=2 * LAYERS, qk=2 * LAYERS),
        qkv(LAYERS, "packed", layout="per head q|k|v"),
        acts=act("relu2", LAYERS),
        rope=rope(2 * LAYERS, HEAD_DIM // 2, partial=True),
    )
    return causal_lm(hf.PersimmonForCausalLM(config), content)


def nemotron(implementation: str) -> Case:
    """Norms with one plus the weight, and squared ReLU."""
    config = hf.NemotronConfig(**GROUPED, rope_parameters=_HALF, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS),
        _pre_norm(one_plus_weight=True),
        qkv(LAYERS, bias="none"),
        acts=act("relu2", LAYERS, bias=False),
        rope=rope(2 * LAYERS, HEAD_DIM // 2, partial=True),
    )
    return causal_lm(hf.NemotronForCausalLM(config), content)


def xglm(implementation: str) -> Case:
    config = hf.XGLMConfig(
        vocab_size=256,
        max_position_embeddings=128,
        d_model=64,
        ffn_dim=128,
        num_layers=LAYERS,
        attention_heads=HEADS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, scale_at="query"),
        _pre_norm(embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )
    return causal_lm(hf.XGLMForCausalLM(config), content)


def biogpt(implementation: str) -> Case:
    sizes = {**SIZES, "num_attention_heads": HEADS}
    config = hf.BioGptConfig(**sizes, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, scale_at="query"),
        _pre_norm(embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )
    return causal_lm(hf.BioGptForCausalLM(config), content, positions=False)


def gpt_neo(implementation: str) -> Case:
    """No scale at all, and a window in every second layer."""
    config = hf.GPTNeoConfig(
        vocab_size=256,
        max_position_embeddings=128,
        hidden_size=64,
        intermediate_size=128,
        num_layers=LAYERS,
        num_heads=HEADS,
        attention_types=[[["global", "local"], LAYERS // 2]],
        window_size=4,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    mask = [*CAUSAL, "sliding_window"]
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, mask, scale=1.0, scale_at="none", window=4),
        _pre_norm(embedding=1),
        qkv(LAYERS, bias="none"),
        acts=act("gelu_tanh", LAYERS),
    )
    return causal_lm(hf.GPTNeoForCausalLM(config), content)
