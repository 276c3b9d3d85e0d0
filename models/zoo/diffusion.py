"""Denoisers of images: DiT, the U-Net of Stable Diffusion, and the transformer of SD 3."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from models.zoo.architectures import Unsupported
from models.zoo.case import Case, Input
from models.zoo.language import HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, glu, norms, qkv, truth

_LATENT = Input("float", ("batch", 4, 8, 8))
_TIME = Input("ids:1000", ("batch",))


def _sample(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def _written_out(model: Any, implementation: str) -> None:
    if implementation == "eager":
        model.set_attn_processor(AttnProcessor())


def dit(implementation: str) -> Case:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=8,
        num_layers=LAYERS,
        sample_size=8,
        num_embeds_ada_norm=16,
    )
    if implementation == "eager":
        for block in model.transformer_blocks:
            block.attn1.set_processor(AttnProcessor())
    # Each block embeds the timestep; the last norm repeats what the first block did.
    acts = act("gelu_tanh", LAYERS) + act("silu", LAYERS)
    return Case(
        model,
        {
            "hidden_states": _LATENT,
            "timestep": _TIME,
            "class_labels": Input("ids:16", ("batch",)),
        },
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["none"]),
            norms(
                "LayerNorm",
                2 * LAYERS + 1,
                add_norm=2 * LAYERS,
                embedding=1,
                bias=False,
                modulated=2 * LAYERS + 1,
            ),
            qkv(LAYERS),
            acts=acts,
        ),
        ("sample",),
        _sample,
    )


def sd_unet(implementation: str) -> Case:
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    _written_out(model, implementation)
    blocks = 4  # transformer blocks: one on the way down, one in the middle, two on the way up
    resnets = 8
    return Case(
        model,
        {
            "sample": _LATENT,
            "timestep": _TIME,
            "encoder_hidden_states": Input("float", ("batch", "source", 64)),
        },
        truth(
            blocks,
            attention(2 * blocks, 2, 16, ["none"], cross=blocks, head_dims=[16, 32]),
            norms("LayerNorm", 3 * blocks, add_norm=2 * blocks),
            qkv(blocks, bias="none", cross_kv_groups=blocks),
            acts=act("silu", 1),
            glu=glu("geglu_erf", blocks, packed=True, bias=True),
            group_norm={"count": 2 * resnets + 1 + blocks, "silu": 2 * resnets + 1},
        ),
        ("out_sample",),
        _sample,
    )


def sd3(implementation: str) -> Case:
    if implementation == "eager":
        raise Unsupported("the modelling code has only scaled_dot_product_attention")
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    # The last block does not go on with the text: one norm and one feed-forward fewer.
    layer_norms = 4 * LAYERS
    return Case(
        model,
        {
            "hidden_states": _LATENT,
            "encoder_hidden_states": Input("float", ("batch", "source", 32)),
            "pooled_projections": Input("float", ("batch", 32)),
            "timestep": _TIME,
        },
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["none"], joint=True),
            norms(
                "LayerNorm and RMSNorm",
                layer_norms + 4 * LAYERS,
                add_norm=layer_norms - 2,
                embedding=1,
                bias=False,
                qk=4 * LAYERS,
                modulated=layer_norms,
            ),
            qkv(2 * LAYERS),
            acts=act("gelu_tanh", 2 * LAYERS - 1) + act("silu", 2),
        ),
        ("sample",),
        _sample,
    )
