"""Encoders of text that are not written as BERT is: rope, convolutions, latent bias, pre-norm."""

from __future__ import annotations

from typing import Any

import transformers as hf

from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.language import GROUPED, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth

_PADDED = {"input_ids": IDS, "attention_mask": PADDING}
_TYPED = {**_PADDED, "token_type_ids": Input("types", ("batch", "seq"))}
_PLAIN = {key: SIZES[key] for key in SIZES if key not in ("bos_token_id", "eos_token_id")}


def _post_norm(activation: str = "gelu_erf", **attention_more: Any) -> dict[str, Any]:
    return truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, **{"mask": ["padding"], **attention_more}),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", embedding=1),
        qkv(LAYERS),
        acts=act(activation, LAYERS),
    )


def xlm_roberta(implementation: str) -> Case:
    config = hf.XLMRobertaConfig(**_PLAIN, attn_implementation=implementation)
    return Case(hf.XLMRobertaModel(config, add_pooling_layer=False), _PADDED, _post_norm())


def esm(implementation: str) -> Case:
    """Scale on q in front of the rope."""
    config = hf.EsmConfig(
        **_PLAIN,
        mask_token_id=4,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["padding"], scale_at="query"),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    return Case(hf.EsmModel(config, add_pooling_layer=False), _PADDED, content)


def squeezebert(implementation: str) -> Case:
    """Grouped convolutions where others have linear layers: no group of projections, no GEMM."""
    config = hf.SqueezeBertConfig(**_PLAIN, embedding_size=64, attn_implementation=implementation)
    content = _post_norm()
    content["qkv"] = qkv(0, "grouped convolutions")
    content["gemm_bias_act"] = []
    return Case(hf.SqueezeBertModel(config), _TYPED, content)


def megatron_bert(implementation: str) -> Case:
    config = hf.MegatronBertConfig(**_PLAIN, attn_implementation=implementation)
    content = _post_norm()
    content["norms"] = norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, embedding=1)
    return Case(hf.MegatronBertModel(config, add_pooling_layer=False), _TYPED, content)


def roformer(implementation: str) -> Case:
    config = hf.RoFormerConfig(**_PLAIN, embedding_size=64, attn_implementation=implementation)
    content = _post_norm()
    content["rope"] = rope(2 * LAYERS, HEAD_DIM, style="interleaved")
    return Case(hf.RoFormerModel(config), _TYPED, content)


def eurobert(implementation: str) -> Case:
    config = hf.EuroBertConfig(**GROUPED, mask_token_id=4, attn_implementation=implementation)
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, ["padding"], kv_heads=KV_HEADS),
        norms("RMSNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, bias=False),
        qkv(LAYERS, bias="none"),
        glu=glu("swiglu", LAYERS),
        rope=rope(2 * LAYERS, HEAD_DIM),
    )
    return Case(hf.EuroBertModel(config), _PADDED, content)


def big_bird(implementation: str) -> Case:
    """With full attention: its sparse form gathers blocks at random."""
    config = hf.BigBirdConfig(
        **{**_PLAIN, "hidden_act": "gelu_new"},
        bos_token_id=1,
        eos_token_id=2,
        sep_token_id=2,
        attention_type="original_full",
        attn_implementation=implementation,
    )
    content = _post_norm("gelu_tanh")
    return Case(hf.BigBirdModel(config, add_pooling_layer=False), _TYPED, content)


def deberta(implementation: str) -> Case:
    """One packed projection, cut by head; biases of q and v apart from it."""
    config = hf.DebertaConfig(
        **_PLAIN,
        relative_attention=True,
        max_relative_positions=16,
        pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
        attn_implementation=implementation,
    )
    content = _post_norm(mask=["disentangled_bias", "padding"], scale=48**-0.5, scale_at="query")
    content["norms"] = norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post")
    content["qkv"] = qkv(LAYERS, "packed", "q and v", layout="per head q|k|v")
    return Case(hf.DebertaModel(config), _PADDED, content)
