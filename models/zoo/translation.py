"""Encoder-decoders of text, one half a model."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, glu, norms, qkv, truth

_ENCODER = {"input_ids": IDS, "attention_mask": PADDING}
_DECODER = {
    **_ENCODER,
    "encoder_hidden_states": Input("float", ("batch", "source", 64)),
    "encoder_attention_mask": Input("padmask", ("batch", "source")),
}
_SIZES = {
    "vocab_size": 256,
    "d_model": 64,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


def _decode(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).last_hidden_state


def _encoder(norm: dict[str, Any], activation: str) -> dict[str, Any]:
    return truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["padding"]),
        norm,
        qkv(LAYERS),
        acts=act(activation, LAYERS),
    )


def _decoder(norm: dict[str, Any], activation: str) -> dict[str, Any]:
    return truth(
        LAYERS,
        attention(2 * LAYERS, HEADS, HEAD_DIM, CAUSAL, cross=LAYERS),
        norm,
        qkv(LAYERS, cross_kv_groups=LAYERS),
        acts=act(activation, LAYERS),
    )


def bart_encoder(implementation: str) -> Case:
    config = hf.BartConfig(**_SIZES, attn_implementation=implementation)
    norm = norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", embedding=1)
    return Case(hf.BartModel(config).encoder, _ENCODER, _encoder(norm, "gelu_erf"))


def bart_decoder(implementation: str) -> Case:
    config = hf.BartConfig(**_SIZES, attn_implementation=implementation)
    norm = norms("LayerNorm", 3 * LAYERS + 1, add_norm=3 * LAYERS, placement="post", embedding=1)
    return Case(hf.BartModel(config).decoder, _DECODER, _decoder(norm, "gelu_erf"), call=_decode)


def marian_encoder(implementation: str) -> Case:
    config = hf.MarianConfig(
        **_SIZES, activation_function="swish", attn_implementation=implementation
    )
    norm = norms("LayerNorm", 2 * LAYERS, add_norm=2 * LAYERS, placement="post")
    return Case(hf.MarianModel(config).encoder, _ENCODER, _encoder(norm, "silu"))


def mbart_decoder(implementation: str) -> Case:
    config = hf.MBartConfig(**_SIZES, attn_implementation=implementation)
    # One norm on the embeddings, whose sum it follows, and one at the end.
    norm = norms("LayerNorm", 3 * LAYERS + 2, add_norm=3 * LAYERS, embedding=1)
    return Case(hf.MBartModel(config).decoder, _DECODER, _decoder(norm, "gelu_erf"), call=_decode)


def t5_decoder(implementation: str) -> Case:
    """The v1.1 form: a gated feed-forward."""
    config = hf.T5Config(
        vocab_size=256,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        attn_implementation=implementation,
    )
    masks = ["relative_bias", *CAUSAL]
    norm = norms("RMSNorm", 3 * LAYERS + 1, add_norm=3 * LAYERS, bias=False)
    return Case(
        hf.T5Model(config).decoder,
        _DECODER,
        truth(
            LAYERS,
            attention(2 * LAYERS, HEADS, HEAD_DIM, masks, cross=LAYERS, scale=1.0, scale_at="none"),
            norm,
            qkv(LAYERS, bias="none", cross_kv_groups=LAYERS),
            glu=glu("geglu_tanh", LAYERS),
        ),
        call=_decode,
        # Each sum is clamped before the norm reads it.
        fp16={"norms": {**norm, "add_norm": 0}},
    )
