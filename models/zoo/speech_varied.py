"""Conformers, decoders of sound, and encoders whose position bias is computed from the tokens."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from models.zoo.case import Case, Input
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth


def wavlm(implementation: str) -> Case:
    """Each head scales the relative bias by a gate that it computes from its tokens."""
    config = hf.WavLMConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        conv_dim=(32, 32),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
        max_bucket_distance=64,
        vocab_size=32,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["relative_bias"], scale_at="query"),
        norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS, placement="post", embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )
    wave = {"input_values": Input("float", ("batch", "samples"))}
    return Case(hf.WavLMModel(config), wave, content)


def parakeet(implementation: str) -> Case:
    """A Fast Conformer: relative positions as Transformer-XL shifts them."""
    config = hf.ParakeetEncoderConfig(
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=128,
        subsampling_conv_channels=8,
        num_mel_bins=16,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["relative_bias"]),
        # Of five norms in a block only the first does not follow a sum.
        norms("LayerNorm", 5 * LAYERS, add_norm=4 * LAYERS, placement="conformer"),
        qkv(LAYERS),
        acts=act("silu", 2 * LAYERS),
    )
    frames = {"input_features": Input("float", ("batch", 64, 16))}
    return Case(hf.ParakeetEncoder(config), frames, content)


def wav2vec2_bert(implementation: str) -> Case:
    config = hf.Wav2Vec2BertConfig(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=128,
        feature_projection_input_dim=16,
        conv_depthwise_kernel_size=5,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["relative_bias"]),
        # Of six norms in a block those of the first feed-forward and of the convolution's depth
        # follow no sum.
        norms("LayerNorm", 6 * LAYERS + 1, add_norm=4 * LAYERS, placement="conformer"),
        qkv(LAYERS),
        acts=act("silu", 2 * LAYERS),
    )
    frames = {"input_features": Input("float", ("batch", "seq", 16))}
    return Case(hf.Wav2Vec2BertModel(config), frames, content)


def audio_spectrogram(implementation: str) -> Case:
    config = hf.ASTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        patch_size=8,
        frequency_stride=4,
        time_stride=4,
        max_length=32,
        num_mel_bins=16,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )
    return Case(hf.ASTModel(config), {"input_values": Input("float", ("batch", 32, 16))}, content)


def _decode(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).last_hidden_state


def moonshine_decoder(implementation: str) -> Case:
    """Rope in pairs on half of each head; the packed feed-forward has its gate second."""
    config = hf.MoonshineConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        encoder_num_hidden_layers=LAYERS,
        decoder_num_hidden_layers=LAYERS,
        encoder_num_attention_heads=HEADS,
        decoder_num_attention_heads=HEADS,
        max_position_embeddings=128,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(2 * LAYERS, HEADS, HEAD_DIM, ["causal"], cross=LAYERS),
        norms("LayerNorm", 3 * LAYERS + 1, add_norm=3 * LAYERS, bias=False),
        qkv(LAYERS, bias="none", cross_kv_groups=LAYERS),
        glu=glu("swiglu", LAYERS, packed=True, bias=True),
        rope=rope(2 * LAYERS, HEAD_DIM // 2, partial=True, style="interleaved"),
    )
    inputs = {
        "input_ids": Input("ids:256", ("batch", "seq")),
        "encoder_hidden_states": Input("float", ("batch", "source", 64)),
    }
    return Case(hf.MoonshineModel(config).decoder, inputs, content, call=_decode)


def musicgen_decoder(implementation: str) -> Case:
    """One codebook, so that its input is a batch of tokens."""
    config = hf.MusicgenDecoderConfig(
        vocab_size=256,
        max_position_embeddings=128,
        num_hidden_layers=LAYERS,
        ffn_dim=128,
        num_attention_heads=HEADS,
        hidden_size=64,
        num_codebooks=1,
        pad_token_id=256,
        bos_token_id=256,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(2 * LAYERS, HEADS, HEAD_DIM, CAUSAL, cross=LAYERS),
        norms("LayerNorm", 3 * LAYERS + 1, add_norm=3 * LAYERS, embedding=1),
        qkv(LAYERS, bias="none", cross_kv_groups=LAYERS),
        acts=act("gelu_erf", LAYERS, bias=False),
    )
    inputs = {
        "input_ids": Input("ids:256", ("batch", "seq")),
        "attention_mask": Input("padmask", ("batch", "seq")),
        "encoder_hidden_states": Input("float", ("batch", "source", 64)),
        "encoder_attention_mask": Input("padmask", ("batch", "source")),
    }
    return Case(hf.MusicgenModel(config).decoder, inputs, content, call=_decode)
