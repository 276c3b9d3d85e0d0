"""What the language models share: small sizes, and how they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.zoo.case import IDS, PADDING, POSITIONS, Case, Input

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 4, 2, 16
CAUSAL = ["causal", "padding"]
SIZES = {
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
PREFILL = {"input_ids": IDS, "attention_mask": PADDING, "position_ids": POSITIONS}


def _logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits


def causal_lm(model: nn.Module, truth: dict[str, Any], *, positions: bool = True) -> Case:
    """A decoder that reads a whole prompt and gives the logits of each token."""
    inputs: dict[str, Input] = dict(PREFILL)
    if not positions:
        del inputs["position_ids"]
    return Case(model, inputs, truth, ("logits",), _logits)
