"""Architectures that were measured only after those of the other files had been mended."""

from __future__ import annotations

import diffusers
import torch
import transformers as hf
from torch import nn

from models.zoo import decoders_plain, decoders_recent
from models.zoo.architectures import Unsupported
from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.decoders_cached import cached
from models.zoo.language import CAUSAL, GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, causal_lm
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth

_NO_HEAD_DIM = {key: value for key, value in GROUPED.items() if key != "head_dim"}
_PLAIN = {key: SIZES[key] for key in SIZES if key not in ("bos_token_id", "eos_token_id")}


def olmo3(implementation: str) -> Case:
    config = hf.Olmo3Config(
        **_NO_HEAD_DIM,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, [*CAUSAL, "sliding_window"], kv_heads=KV_HEADS),
        norms("RMSNorm", 4 * LAYERS + 1, add_norm=1, bias=False, qk=2 * LAYERS),
        qkv(LAYERS, bias="none"),
        glu=glu("swiglu", LAYERS),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    return causal_lm(hf.Olmo3ForCausalLM(config), content)


def apertus(implementation: str) -> Case:
    """An activation of its own, xIELU, and norms of q and k."""
    config = hf.ApertusConfig(**_NO_HEAD_DIM, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS),
        norms("RMSNorm", 4 * LAYERS + 1, add_norm=2 * LAYERS, bias=False, qk=2 * LAYERS),
        qkv(LAYERS, bias="none"),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    return causal_lm(hf.ApertusForCausalLM(config), content)


def lfm2(implementation: str) -> Case:
    """A gated short convolution in the place of one layer's attention."""
    config = hf.Lfm2Config(
        **_NO_HEAD_DIM,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(1, HEADS, HEAD_DIM, CAUSAL, kv_heads=KV_HEADS),
        norms("RMSNorm", 2 * LAYERS + 3, add_norm=2 * LAYERS, bias=False, qk=2),
        qkv(1, bias="none"),
        glu=glu("swiglu", LAYERS),
        rope=rope(2, HEAD_DIM),
    )
    return causal_lm(hf.Lfm2ForCausalLM(config), content)


def gpt_neox_japanese(implementation: str) -> Case:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    config = hf.GPTNeoXJapaneseConfig(
        **sizes, intermediate_multiple_size=2, attn_implementation=implementation
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS),
        qkv(LAYERS, "packed", "none", layout="per head q|k|v"),
        acts=act("gelu_erf", LAYERS, bias=False),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    return causal_lm(hf.GPTNeoXJapaneseForCausalLM(config), content, positions=False)


def glm4_decode(implementation: str) -> Case:
    return cached(decoders_recent.glm4(implementation), kv_heads=KV_HEADS)


def granite_decode(implementation: str) -> Case:
    return cached(decoders_recent.granite(implementation), kv_heads=KV_HEADS)


def nemotron_decode(implementation: str) -> Case:
    return cached(decoders_plain.nemotron(implementation), kv_heads=KV_HEADS)


def rembert(implementation: str) -> Case:
    config = hf.RemBertConfig(**_PLAIN, input_embedding_size=32, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["padding"]),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )
    inputs = {"input_ids": IDS, "attention_mask": PADDING}
    return Case(hf.RemBertModel(config, add_pooling_layer=False), inputs, content)


def aimv2_vision(implementation: str) -> Case:
    config = hf.Aimv2VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=32,
        patch_size=8,
        use_head=False,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
        # One on the patches; the first of a block follows the positions that are added to them.
        norms("RMSNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS, embedding=1, bias=False),
        qkv(LAYERS, bias="none"),
        glu=glu("swiglu", LAYERS),
    )
    image = {"pixel_values": Input("float", ("batch", 3, 32, 32))}
    return Case(hf.Aimv2VisionModel(config), image, content)


def wav2vec2_conformer(implementation: str) -> Case:
    """Rope on the tokens before they are projected to q and k."""
    config = hf.Wav2Vec2ConformerConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        conv_dim=(32, 32),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        conv_depthwise_kernel_size=5,
        position_embeddings_type="rotary",
        vocab_size=32,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
        norms("LayerNorm", 5 * LAYERS + 2, add_norm=4 * LAYERS, placement="conformer"),
        qkv(LAYERS, "q and k together, v apart"),
        acts=act("silu", 2 * LAYERS),
        rope=rope(LAYERS, HEAD_DIM),
    )
    wave = {"input_values": Input("float", ("batch", "samples"))}
    return Case(hf.Wav2Vec2ConformerModel(config), wave, content)


def _sample(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def auraflow(implementation: str) -> Case:
    """A block of two streams and one of a single stream, with norms in fp32 and without weights."""
    if implementation == "eager":
        raise Unsupported("the modelling code has only scaled_dot_product_attention")
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=32,
        caption_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=64,
    )
    content = truth(
        2,
        attention(2, HEADS, HEAD_DIM, ["none"], joint=True),
        # In the first block two norms, two of sums, and four of q and k; in the second one of the
        # joined streams, one of a sum, and two of q and k.
        norms("LayerNorm", 2 + 2 + 4 + 1 + 1 + 2, add_norm=3, bias=False, qk=6, modulated=6),
        qkv(3, bias="none"),
        acts=act("silu", 1),
        glu=glu("swiglu", 3),
    )
    inputs = {
        "hidden_states": Input("float", ("batch", 4, 8, 8)),
        "encoder_hidden_states": Input("float", ("batch", "source", 32)),
        "timestep": Input("float", ("batch",)),
    }
    return Case(model, inputs, content, ("sample",), _sample)
