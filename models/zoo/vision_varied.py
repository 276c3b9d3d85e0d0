"""Encoders of images in stages, of video, and the towers of detectors."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth

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


def vit_msn(implementation: str) -> Case:
    config = hf.ViTMSNConfig(**_SIZES, attn_implementation=implementation)
    return Case(hf.ViTMSNModel(config), _IMAGE, _pre_norm())


def ijepa(implementation: str) -> Case:
    config = hf.IJepaConfig(**_SIZES, attn_implementation=implementation)
    return Case(hf.IJepaModel(config, add_pooling_layer=False), _IMAGE, _pre_norm())


def dinov2_registers(implementation: str) -> Case:
    """A gated feed-forward, packed."""
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    config = hf.Dinov2WithRegistersConfig(
        **sizes, mlp_ratio=2, use_swiglu_ffn=True, attn_implementation=implementation
    )
    content = _pre_norm(embedding=0)
    content["gemm_bias_act"] = []
    content["glu"] = glu("swiglu", LAYERS, packed=True, bias=True)
    return Case(hf.Dinov2WithRegistersModel(config), _IMAGE, content)


def yolos(implementation: str) -> Case:
    config = hf.YolosConfig(
        **{**_SIZES, "image_size": [32, 32]},
        num_detection_tokens=5,
        use_mid_position_embeddings=False,
        attn_implementation=implementation,
    )
    return Case(hf.YolosModel(config, add_pooling_layer=False), _IMAGE, _pre_norm())


def owlvit_text(implementation: str) -> Case:
    config = hf.OwlViTTextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=255,
        attn_implementation=implementation,
    )
    content = _pre_norm("quick_gelu", mask=CAUSAL)
    return Case(hf.OwlViTTextModel(config), {"input_ids": IDS, "attention_mask": PADDING}, content)


def videomae(implementation: str) -> Case:
    """Key has no bias; the others have theirs apart from the linear layer."""
    config = hf.VideoMAEConfig(
        **_SIZES,
        num_frames=4,
        tubelet_size=2,
        use_mean_pooling=False,
        attn_implementation=implementation,
    )
    frames = {"pixel_values": Input("float", ("batch", 4, 3, 32, 32))}
    return Case(hf.VideoMAEModel(config), frames, _pre_norm(bias="q and v"))


def _depth(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs).predicted_depth


def depth_anything(implementation: str) -> Case:
    """DINOv2 of four layers, each of which feeds the head through the last norm."""
    layers = 4
    backbone = hf.Dinov2Config(
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=[f"stage{index}" for index in range(1, layers + 1)],
        reshape_hidden_states=False,
        attn_implementation=implementation,
    )
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=64,
        neck_hidden_sizes=[16, 32, 64, 64],
        fusion_hidden_size=16,
        head_hidden_size=8,
        attn_implementation=implementation,
    )
    content = truth(
        layers,
        attention(layers, HEADS, HEAD_DIM, ["none"]),
        # The head's norm reads the sum that the next block's first norm reads too: one of the
        # two counts, and the last block's sum has only the head's.
        norms(
            "LayerNorm", 3 * layers, add_norm=2 * layers, embedding=1, add_norm_shared=layers - 1
        ),
        qkv(layers),
        acts=act("gelu_erf", layers),
    )
    image = {"pixel_values": Input("float", ("batch", 3, 42, 42))}
    return Case(
        hf.DepthAnythingForDepthEstimation(config), image, content, ("predicted_depth",), _depth
    )


_STAGES = {
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "hidden_sizes": [32, 64],
    "patch_sizes": [4, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}


def segformer(implementation: str) -> Case:
    """Fewer tokens of k and v in the first stage; a convolution inside the feed-forward."""
    config = hf.SegformerConfig(**_STAGES, sr_ratios=[2, 1], attn_implementation=implementation)
    content = truth(
        4,
        attention(4, 4, HEAD_DIM, ["none"], heads_by_stage=[2, 4]),
        # In each stage: patches, two a block of which the first follows no sum, and the last;
        # and one in the reduction of each block of the first.
        norms("LayerNorm", 2 * (1 + 4 + 1) + 2, add_norm=2 * 4),
        qkv(2, reduced=2),
        acts=[],
    )
    return Case(hf.SegformerModel(config), _IMAGE, content)


def pvt(implementation: str) -> Case:
    config = hf.PvtConfig(
        **{**_STAGES, "patch_sizes": [4, 2]},
        image_size=32,
        sequence_reduction_ratios=[2, 1],
        attn_implementation=implementation,
    )
    content = truth(
        4,
        attention(4, 4, HEAD_DIM, ["none"], heads_by_stage=[2, 4]),
        # The first block of a stage reads the patches' norm with positions added to it.
        norms("LayerNorm", 2 * (1 + 4) + 2 + 1, add_norm=2 * 3 + 1, embedding=2),
        qkv(2, reduced=2),
        acts=act("gelu_erf", 4),
    )
    return Case(hf.PvtModel(config), _IMAGE, content)


def swinv2(implementation: str) -> Case:
    """Cosine attention: q and k have length one, and each head has a scale of its own."""
    config = hf.Swinv2Config(
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=2.0,
        attn_implementation=implementation,
    )
    blocks = 4
    content = truth(
        blocks,
        attention(
            blocks,
            4,
            16,
            ["relative_bias", "shifted_window"],
            heads_by_stage=[2, 4],
            scale_at="scores, learnt for each head",
        ),
        # The branch is normalised and then added: only the last norm follows a sum. One more for
        # the patches and one where a stage ends.
        norms("LayerNorm", 2 * blocks + 3, add_norm=1, placement="post_branch"),
        qkv(blocks, bias="q and v"),
        acts=act("gelu_erf", blocks),
    )
    return Case(hf.Swinv2Model(config, add_pooling_layer=False), _IMAGE, content)


def hiera(implementation: str) -> Case:
    """Attention in windows that are a dimension of their own, and q pooled between stages."""
    config = hf.HieraConfig(
        embed_dim=32,
        image_size=[32, 32],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        mlp_ratio=2.0,
        depths=[2, 2],
        num_heads=[2, 4],
        num_query_pool=1,
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False],
        attn_implementation=implementation,
    )
    blocks = 4
    content = truth(
        blocks,
        attention(blocks, 4, 16, ["none"], heads_by_stage=[2, 4], scale_at="query"),
        norms("LayerNorm", 2 * blocks, add_norm=2 * blocks - 1, embedding=1),
        qkv(blocks, "packed", layout="q|k|v"),
        acts=act("gelu_erf", blocks),
    )
    return Case(hf.HieraModel(config, add_pooling_layer=False), _IMAGE, content)


def levit(implementation: str) -> Case:
    """Linear layers with batch norms, so no LayerNorm at all; a bias for each offset."""
    config = hf.LevitConfig(
        image_size=64,
        hidden_sizes=[32, 64, 64],
        num_attention_heads=[2, 4, 4],
        depths=[1, 1, 1],
        key_dim=[16, 16, 16],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
        attn_implementation=implementation,
    )
    image = {"pixel_values": Input("float", ("batch", 3, 64, 64))}
    # Between two stages q is cut out of the grid, and k and v come from one projection.
    content = truth(
        3,
        attention(5, 4, 16, ["relative_bias"], value_head_dim=32, subsampled=2),
        norms("none", 0, add_norm=0),
        qkv(3, "packed", layout="per head q|k|v"),
    )
    return Case(hf.LevitModel(config), image, content)


def pixtral_vision(implementation: str) -> Case:
    """Rope over two axes, RMSNorm, and a gated feed-forward; one image, cut by its size."""
    config = hf.PixtralVisionConfig(
        **_SIZES,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["images"]),
        norms("RMSNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS - 1, bias=False),
        qkv(LAYERS, bias="none"),
        glu=glu("geglu_erf", LAYERS),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    image = {"pixel_values": Input("float", (1, 3, 32, 32))}
    return Case(hf.PixtralVisionModel(config), image, content)
