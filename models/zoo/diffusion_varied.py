"""More of images and words: Flux, PixArt, a VAE's decoder, and two parts of BLIP."""

from __future__ import annotations

import diffusers
import torch
import transformers as hf
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from models.zoo.architectures import Unsupported
from models.zoo.case import Case, Input
from models.zoo.language import HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, norms, qkv, rope, truth

_TIME = Input("ids:1000", ("batch",))


def _sample(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def flux(implementation: str) -> Case:
    """A block with a stream for each of image and text, and one where both are one stream."""
    if implementation == "eager":
        raise Unsupported("the modelling code has only scaled_dot_product_attention")
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    content = truth(
        2,
        attention(2, HEADS, HEAD_DIM, ["none"], joint=True),
        # The second block joins two sums before its norm, and the last norm reads a slice.
        norms("LayerNorm and RMSNorm", 4 + 1 + 1 + 6, add_norm=2, bias=False, qk=6, modulated=6),
        qkv(3),
        acts=act("gelu_tanh", 3) + act("silu", 2),
        rope=rope(4, HEAD_DIM, style="interleaved"),
    )
    inputs = {
        "hidden_states": Input("float", ("batch", "seq", 16)),
        "encoder_hidden_states": Input("float", ("batch", "source", 32)),
        "pooled_projections": Input("float", ("batch", 32)),
        "timestep": Input("float", ("batch",)),
        "img_ids": Input("float", ("seq", 3)),
        "txt_ids": Input("float", ("source", 3)),
    }
    return Case(model, inputs, content, ("sample",), _sample)


def pixart(implementation: str) -> Case:
    """One embedding of the time modulates every block; the text is attended to without a norm."""
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=8,
        num_layers=LAYERS,
        cross_attention_dim=64,
        sample_size=8,
        caption_channels=32,
        use_additional_conditions=False,
    )
    if implementation == "eager":
        model.set_attn_processor(AttnProcessor())
    count = 2 * LAYERS + 1
    content = truth(
        LAYERS,
        attention(2 * LAYERS, HEADS, HEAD_DIM, ["none"], cross=LAYERS),
        norms("LayerNorm", count, add_norm=2 * LAYERS, embedding=1, bias=False, modulated=count),
        qkv(LAYERS, cross_kv_groups=LAYERS),
        acts=act("gelu_tanh", LAYERS + 1) + act("silu", 1),
    )
    inputs = {
        "hidden_states": Input("float", ("batch", 4, 8, 8)),
        "encoder_hidden_states": Input("float", ("batch", "source", 32)),
        "timestep": _TIME,
    }
    return Case(model, inputs, content, ("sample",), _sample)


def vae_decoder(implementation: str) -> Case:
    """Attention of one head between convolutions."""
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    ).decoder
    if implementation == "eager":
        model.mid_block.attentions[0].set_processor(AttnProcessor())
    resnets = 2 + 2 * 2
    content = truth(
        1,
        attention(1, 1, 64, ["none"]),
        norms("none", 0, add_norm=0),
        qkv(1),
        group_norm={"count": 2 * resnets + 2, "silu": 2 * resnets + 1},
    )
    inputs = {"sample": Input("float", ("batch", 4, 8, 8))}
    return Case(model, inputs, content, ("image",), lambda model, **given: model(**given))


def blip_vision(implementation: str) -> Case:
    config = hf.BlipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=32,
        patch_size=8,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
        # The last norm runs once more, on the first token of its own output.
        norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS, embedding=1),
        qkv(LAYERS, "packed", layout="q|k|v"),
        acts=act("gelu_erf", LAYERS),
    )
    image = {"pixel_values": Input("float", ("batch", 3, 32, 32))}
    return Case(hf.BlipVisionModel(config), image, content, ("last_hidden_state", "pooler_output"))


def blip2_qformer(implementation: str) -> Case:
    """Queries that attend to an image in every second layer."""
    config = hf.Blip2QFormerConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        encoder_hidden_size=64,
        cross_attention_frequency=2,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS + 1, HEADS, HEAD_DIM, ["none"], cross=1),
        norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS + 1, placement="post"),
        qkv(LAYERS, cross_kv_groups=1),
        acts=act("gelu_erf", LAYERS),
    )
    inputs = {
        "query_embeds": Input("float", ("batch", "seq", 64)),
        "encoder_hidden_states": Input("float", ("batch", "source", 64)),
    }
    return Case(hf.Blip2QFormerModel(config), inputs, content)
