"""Encoders of images, and the two towers of CLIP."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, norms, qkv, rope, truth

_IMAGE = {"pixel_values": Input("float", ("batch", 3, 32, 32))}
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 32,
    "patch_size": 8,
}


def _pre_norm(
    activation: str = "gelu_erf", bias: str = "all", mask: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    """Blocks as ViT has them; ``more`` overrides what is said about the norms."""
    said = {"count": 2 * LAYERS + 1, "add_norm": 2 * LAYERS, "embedding": 1, **more}
    return truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, mask or ["none"]),
        norms("LayerNorm", **said),
        qkv(LAYERS, bias=bias),
        acts=act(activation, LAYERS),
    )


def dinov2(implementation: str) -> Case:
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    config = hf.Dinov2Config(**sizes, mlp_ratio=2, attn_implementation=implementation)
    return Case(hf.Dinov2Model(config), _IMAGE, _pre_norm())


def dinov3(implementation: str) -> Case:
    config = hf.DINOv3ViTConfig(**_SIZES, num_register_tokens=4, attn_implementation=implementation)
    content = _pre_norm(bias="q and v", embedding=0)
    content["rope"] = {**rope(2 * LAYERS, HEAD_DIM), "tokens": "patches only"}
    return Case(hf.DINOv3ViTModel(config), _IMAGE, content)


def siglip_vision(implementation: str) -> Case:
    config = hf.SiglipVisionConfig(
        **_SIZES, vision_use_head=False, attn_implementation=implementation
    )
    return Case(hf.SiglipVisionModel(config), _IMAGE, _pre_norm("gelu_tanh"))


def clip_vision(implementation: str) -> Case:
    config = hf.CLIPVisionConfig(**_SIZES, attn_implementation=implementation)
    # The first norm of the first block follows the norm of the embeddings; the last one reads
    # only the class token.
    content = _pre_norm("quick_gelu", count=2 * LAYERS + 2, add_norm=2 * LAYERS - 1)
    return Case(hf.CLIPVisionModel(config), _IMAGE, content, ("last_hidden_state", "pooler_output"))


def clip_text(implementation: str) -> Case:
    config = hf.CLIPTextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=255,
        pad_token_id=0,
        attn_implementation=implementation,
    )
    content = _pre_norm("quick_gelu", mask=CAUSAL)
    outputs = ("last_hidden_state", "pooler_output")
    return Case(
        hf.CLIPTextModel(config), {"input_ids": IDS, "attention_mask": PADDING}, content, outputs
    )


def deit(implementation: str) -> Case:
    config = hf.DeiTConfig(**_SIZES, attn_implementation=implementation)
    return Case(hf.DeiTModel(config, add_pooling_layer=False), _IMAGE, _pre_norm())


def beit(implementation: str) -> Case:
    config = hf.BeitConfig(
        **_SIZES,
        use_relative_position_bias=True,
        use_mean_pooling=False,
        attn_implementation=implementation,
    )
    content = _pre_norm(bias="q and v", mask=["relative_bias"], embedding=0)
    return Case(hf.BeitModel(config, add_pooling_layer=False), _IMAGE, content)


def swin(implementation: str) -> Case:
    config = hf.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=2,
        attn_implementation=implementation,
    )
    blocks = 4
    return Case(
        hf.SwinModel(config, add_pooling_layer=False),
        _IMAGE,
        truth(
            blocks,
            attention(blocks, 4, 16, ["relative_bias", "shifted_window"], heads_by_stage=[2, 4]),
            # Before each block's attention, except where a stage begins, a residual Add.
            norms("LayerNorm", 2 * blocks + 3, add_norm=blocks + 3),
            qkv(blocks),
            acts=act("gelu_erf", blocks),
        ),
    )


def _grid(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs).last_hidden_state


def sam_vision(implementation: str) -> Case:
    config = hf.SamVisionConfig(
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=64,
        patch_size=8,
        window_size=3,
        global_attn_indexes=[1],
        output_channels=32,
        mlp_dim=128,
        num_pos_feats=16,
        attn_implementation=implementation,
    )
    return Case(
        hf.SamVisionModel(config),
        {"pixel_values": Input("float", ("batch", 3, 64, 64))},
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["relative_bias"], scale_at="query"),
            norms("LayerNorm", 2 * LAYERS + 2, add_norm=2 * LAYERS - 1, embedding=1),
            qkv(LAYERS, "packed", layout="q|k|v"),
            acts=act("gelu_erf", LAYERS),
        ),
        ("last_hidden_state",),
        _grid,
    )
