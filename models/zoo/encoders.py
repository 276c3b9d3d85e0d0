"""Encoders of text."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from models.zoo.case import IDS, PADDING, Case, Input
from models.zoo.language import HEAD_DIM, HEADS, LAYERS, SIZES
from models.zoo.truth import act, attention, glu, norms, qkv, rope, truth

_PADDED = {"input_ids": IDS, "attention_mask": PADDING}
_TYPED = {**_PADDED, "token_type_ids": Input("types", ("batch", "seq"))}
_PLAIN = {key: SIZES[key] for key in SIZES if key not in ("bos_token_id", "eos_token_id")}


def _like_bert(**attention_more: Any) -> dict[str, Any]:
    """Post-norm blocks with biases everywhere and a GELU, as BERT has them."""
    return truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, **{"mask": ["padding"], **attention_more}),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", embedding=1),
        qkv(LAYERS),
        acts=act("gelu_erf", LAYERS),
    )


def distilbert(implementation: str) -> Case:
    config = hf.DistilBertConfig(
        vocab_size=256,
        dim=64,
        hidden_dim=128,
        n_layers=LAYERS,
        n_heads=HEADS,
        max_position_embeddings=128,
        attn_implementation=implementation,
    )
    return Case(hf.DistilBertModel(config), _PADDED, _like_bert())


def roberta(implementation: str) -> Case:
    config = hf.RobertaConfig(**_PLAIN, attn_implementation=implementation)
    return Case(hf.RobertaModel(config, add_pooling_layer=False), _PADDED, _like_bert())


def electra(implementation: str) -> Case:
    config = hf.ElectraConfig(**_PLAIN, embedding_size=32, attn_implementation=implementation)
    return Case(hf.ElectraModel(config), _TYPED, _like_bert())


def albert(implementation: str) -> Case:
    config = hf.AlbertConfig(**_PLAIN, embedding_size=32, attn_implementation=implementation)
    content = _like_bert()
    content["gemm_bias_act"] = act("gelu_tanh", LAYERS)
    return Case(hf.AlbertModel(config, add_pooling_layer=False), _TYPED, content)


def mpnet(implementation: str) -> Case:
    config = hf.MPNetConfig(**_PLAIN, attn_implementation=implementation)
    content = _like_bert(mask=["relative_bias", "padding"])
    return Case(hf.MPNetModel(config, add_pooling_layer=False), _PADDED, content)


def _sentence(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return nn.functional.normalize(mean, dim=-1)


def minilm(implementation: str) -> Case:
    """Sentence embeddings: BERT, the mean over tokens, and length one."""
    config = hf.BertConfig(**_PLAIN, attn_implementation=implementation)
    model = hf.BertModel(config, add_pooling_layer=False)
    return Case(model, _TYPED, _like_bert(), ("sentence_embedding",), _sentence)


def deberta_v2(implementation: str) -> Case:
    config = hf.DebertaV2Config(
        **_PLAIN,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        layer_norm_eps=1e-7,
        attn_implementation=implementation,
    )
    scores = attention(
        LAYERS, HEADS, HEAD_DIM, ["disentangled_bias", "padding"], scale_at="key", scale=48**-0.5
    )
    return Case(
        hf.DebertaV2Model(config),
        _PADDED,
        truth(
            LAYERS,
            scores,
            # The position embeddings have a norm too, but it reads weights only: a constant.
            norms(
                "LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", of_constants=1
            ),
            # Position embeddings go through the same projections of q and k, once a layer.
            qkv(LAYERS),
            acts=act("gelu_erf", LAYERS),
        ),
    )


def nomic_bert(implementation: str) -> Case:
    config = hf.NomicBertConfig(**_PLAIN, hidden_act="silu", attn_implementation=implementation)
    return Case(
        hf.NomicBertModel(config, add_pooling_layer=False),
        _PADDED,
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["padding"]),
            norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, placement="post", embedding=1),
            qkv(LAYERS, bias="none"),
            glu=glu("swiglu", LAYERS),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )


def modernbert(implementation: str) -> Case:
    config = hf.ModernBertConfig(
        **SIZES,
        cls_token_id=1,
        sep_token_id=2,
        local_attention=4,
        layer_types=["full_attention", "sliding_attention"],
        attn_implementation=implementation,
    )
    return Case(
        hf.ModernBertModel(config),
        _PADDED,
        truth(
            LAYERS,
            attention(LAYERS, HEADS, HEAD_DIM, ["padding", "sliding_window"], window=2),
            norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, bias=False),
            qkv(LAYERS, "packed", "none", layout="q|k|v"),
            glu=glu("geglu_erf", LAYERS, packed=True),
            rope=rope(2 * LAYERS, HEAD_DIM),
        ),
    )
