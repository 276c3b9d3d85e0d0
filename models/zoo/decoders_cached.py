"""One decoding step: a new token, and past keys and values that are inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from models.zoo import decoders
from models.zoo.case import Case, Input
from models.zoo.language import CAUSAL, HEAD_DIM, HEADS, LAYERS
from models.zoo.truth import act, attention, norms, qkv, truth


def _step(model: nn.Module, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    past = [value for key, value in inputs.items() if key.startswith("past_key_values")]
    cache = hf.DynamicCache(zip(past[::2], past[1::2], strict=True))
    rest = {key: value for key, value in inputs.items() if not key.startswith("past_key_values")}
    out = model(**rest, past_key_values=cache, use_cache=True)
    grown = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return (out.logits, *grown)


def cached(case: Case, kv_heads: int) -> Case:
    inputs = {
        "input_ids": Input("ids:256", ("batch", 1)),
        "attention_mask": Input("padmask", ("batch", "past+1")),
        "position_ids": Input("positions", ("batch", 1)),
    }
    outputs = ["logits"]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            shape = ("batch", kv_heads, "past", HEAD_DIM)
            inputs[f"past_key_values.{layer}.{part}"] = Input("float", shape)
            outputs.append(f"present.{layer}.{part}")
    content: dict[str, Any] = dict(case.truth)
    content["attention"] = {**content["attention"], "kv_cache": "concat", "query_length": 1}
    return Case(case.model, inputs, content, outputs, _step)


def qwen3_decode(implementation: str) -> Case:
    return cached(decoders.qwen3(implementation), kv_heads=2)


def phi3_decode(implementation: str) -> Case:
    return cached(decoders.phi3(implementation), kv_heads=2)


def gpt2_decode(implementation: str) -> Case:
    config = hf.GPT2Config(
        vocab_size=256,
        n_positions=128,
        n_embd=64,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    content = truth(
        LAYERS,
        attention(LAYERS, HEADS, HEAD_DIM, CAUSAL),
        norms("LayerNorm", 2 * LAYERS + 1, add_norm=2 * LAYERS, embedding=1),
        qkv(LAYERS, "packed", layout="q|k|v"),
        acts=act("gelu_tanh", LAYERS),
    )
    return cached(Case(hf.GPT2LMHeadModel(config), {}, content), kv_heads=HEADS)
