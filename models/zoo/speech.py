"""Encoders of sound, and Whisper's decoder."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from models.zoo.case import Case, Input
from models.zoo.language import HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, norms, qkv, truth

_WAVE = {"input_values": Input("float", ("batch", "samples"))}
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}


def wav2vec2(implementation: str) -> Case:
    """The base form: norms after the sums."""
    config = hf.Wav2Vec2Config(**_SIZES, attn_implementation=implementation)
    return Case(
        hf.Wav2Vec2Model(config),
        _WAVE,
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
            norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS, placement="post", embedding=1),
            qkv(LAYERS),
            acts=act("gelu_erf", LAYERS),
        ),
    )


def hubert(implementation: str) -> Case:
    """The large form: norms first, and one after each convolution."""
    config = hf.HubertConfig(
        **_SIZES,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        attn_implementation=implementation,
    )
    return Case(
        hf.HubertModel(config),
        _WAVE,
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
            norms("LayerNorm", 2 * LAYERS + 4, add_norm=2 * LAYERS, embedding=1),
            qkv(LAYERS),
            acts=act("gelu_erf", LAYERS),
        ),
    )


def _whisper(implementation: str) -> hf.WhisperModel:
    config = hf.WhisperConfig(
        vocab_size=256,
        d_model=64,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=16,
        max_source_positions=16,
        max_target_positions=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation=implementation,
    )
    return hf.WhisperModel(config)


def whisper_encoder(implementation: str) -> Case:
    norm = norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, embedding=1)
    return Case(
        _whisper(implementation).encoder,
        {"input_features": Input("float", ("batch", 16, 32))},
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["none"], scale_at="query"),
            norm,
            qkv(LAYERS, bias="q and v"),
            acts=act("gelu_erf", LAYERS),
        ),
        # What a block gives is clamped before the next norm reads it.
        fp16={"norms": {**norm, "add_norm": LAYERS}},
    )


def _decode(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).last_hidden_state


def whisper_decoder(implementation: str) -> Case:
    return Case(
        _whisper(implementation).decoder,
        {
            "input_ids": Input("ids:256", ("batch", "seq")),
            "encoder_hidden_states": Input("float", ("batch", 16, 64)),
        },
        truth(
            LAYERS,
            attention(2 * LAYERS, HEADS, HEAD_DIM, ["causal"], cross=LAYERS, scale_at="query"),
            norms("LayerNorm", 3 * LAYERS + 1, add_norm=3 * LAYERS, embedding=1),
            qkv(LAYERS, bias="q and v", cross_kv_groups=LAYERS),
            acts=act("gelu_erf", LAYERS),
        ),
        call=_decode,
    )
