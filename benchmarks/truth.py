"""Models with ground truth beside them: what is in them, and inputs to run them on.

A model ``NAME.onnx`` has ``NAME.json``: ``truth`` says how many of each pattern the architecture
has, ``inputs`` gives each input's shape (numbers, names, sums of both) and its kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opfuse.graph.dims import evaluate, parse

# GemmAct has no tanh: BERT's and ViT's pooler, one small layer at the very end.
ACTIVATIONS = ("relu", "gelu_erf", "gelu_tanh", "gelu", "quick_gelu", "silu")

# Where the ground truth does not say at which sizes the model runs.
SIZES = (
    {"batch": 2, "seq": 8, "past": 6},
    {"batch": 3, "seq": 13, "past": 5},
    {"batch": 1, "seq": 1, "past": 1},
)

KINDS = (
    "attention cores",
    "norms",
    "add+norm",
    "RoPE applications",
    "GLU",
    "QKV groups",
    "GEMM+activation",
    "GroupNorm+SiLU",
)


@dataclass(frozen=True)
class Truth:
    """What the architecture has: ``counts`` by kind, and whether Q, K, V are packed already."""

    path: Path
    counts: Mapping[str, int]
    packed_qkv: bool
    dtype: str
    inputs: Mapping[str, Mapping[str, Any]]
    sizes: Sequence[Mapping[str, int]]

    def feeds(
        self, sizes: Mapping[str, int], dtypes: Mapping[str, np.dtype], seed: int
    ) -> dict[str, np.ndarray]:
        """Inputs by name at the given sizes, for the inputs that ``dtypes`` names."""
        random = np.random.default_rng(seed)
        feeds = {}
        for name, spec in self.inputs.items():
            if name in dtypes:
                shape = [evaluate(parse(str(dim)), sizes) for dim in spec["shape"]]
                feeds[name] = _filled(spec["kind"], shape, sizes, random).astype(dtypes[name])
        return feeds


def read(model: Path) -> Truth:
    """The ground truth beside a model."""
    content = json.loads(model.with_suffix(".json").read_text())
    truth = content["truth"]
    acts = (item for item in truth["gemm_bias_act"] if item["act"] in ACTIVATIONS)
    counts = {
        "attention cores": truth["attention"]["cores"],
        "norms": truth["norms"]["count"],
        "add+norm": truth["norms"]["add_norm"],
        "RoPE applications": (truth["rope"] or {}).get("applications", 0),
        "GLU": (truth["glu"] or {}).get("count", 0),
        "QKV groups": truth["qkv"]["groups"],
        "GEMM+activation": sum(item["count"] for item in acts),
        "GroupNorm+SiLU": truth.get("group_norm", {}).get("silu", 0),
    }
    packed = truth["qkv"]["form"] == "packed"
    sizes = content.get("sizes", SIZES)
    return Truth(model, counts, packed, content["dtype"], content["inputs"], sizes)


def _filled(
    kind: str, shape: list[int], sizes: Mapping[str, int], random: np.random.Generator
) -> np.ndarray:
    name, _, limit = kind.partition(":")
    if name == "ids":
        return random.integers(3, int(limit), shape)
    if name == "types":
        return random.integers(0, 2, shape)
    if name == "padmask":
        return _padding_mask(shape)
    if name in ("positions0", "positions"):
        start = sizes.get("past", 0) if name == "positions" else 0
        return np.broadcast_to(np.arange(start, start + shape[-1]), shape)
    if name == "float":
        return random.standard_normal(shape)
    raise ValueError(f"unknown kind of input {kind!r}")


def _padding_mask(shape: list[int]) -> np.ndarray:
    """1 = attend; every row but the first ends in one or two padded tokens, where it has three."""
    mask = np.ones(shape, np.int64)
    for row in range(1, shape[0]):
        mask[row, max(1, shape[1] - 1 - row % 2) :] = 0
    return mask
