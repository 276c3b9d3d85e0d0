"""Ground truth: what an architecture has, from its config and modelling code, never a graph.

The numbers that torch can count while it runs (norms, linear layers) are counted too, and a
difference stops the export.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.zoo.case import Positional


def attention(
    cores: int,
    heads: int,
    head_dim: int,
    mask: list[str],
    *,
    kv_heads: int = 0,
    cross: int = 0,
    scale: float | None = None,
    scale_at: str = "scores",
    **more: Any,
) -> dict[str, Any]:
    """Attention cores; ``scale`` is 1 / sqrt(head_dim) where it is not given."""
    return {
        "cores": cores,
        "cross": cross,
        "heads": heads,
        "kv_heads": kv_heads or heads,
        "gqa_ratio": heads // (kv_heads or heads),
        "head_dim": head_dim,
        "scale": head_dim**-0.5 if scale is None else scale,
        "scale_at": scale_at,
        "mask": mask,
        "softcap": None,
        **more,
    }


def norms(
    kind: str,
    count: int,
    *,
    add_norm: int,
    placement: str = "pre",
    embedding: int = 0,
    qk: int = 0,
    bias: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """Norms. Of two norms that read the same sum one counts as ``add_norm``.

    ``add_norm_shared`` counts the others.
    """
    return {
        "kind": kind,
        "count": count,
        "qk_norm_count": qk,
        "add_norm": add_norm,
        "add_norm_embedding": embedding,
        "placement": placement,
        "bias": bias,
        **more,
    }


def qkv(groups: int, form: str = "separate", bias: str = "all", **more: Any) -> dict[str, Any]:
    """Q, K, V projections from one input."""
    return {"groups": groups, "form": form, "bias": bias, "cross_kv_groups": 0, **more}


def act(name: str, count: int, *, bias: bool = True) -> list[dict[str, Any]]:
    """Linear layers followed by an activation."""
    return [{"act": name, "count": count, "bias": bias}]


def glu(kind: str, count: int, *, packed: bool = False, bias: bool = False) -> dict[str, Any]:
    """Gated feed-forward blocks."""
    return {"kind": kind, "count": count, "packed_gate_up": packed, "bias": bias}


def rope(applications: int, rotary: int, *, partial: bool = False, style: str = "half") -> dict:
    """Rotary embedding of q and of k."""
    return {
        "applications": applications,
        "rotary_dim": rotary,
        "partial": partial,
        "style": style,
    }


def truth(
    layers: int,
    attention: dict[str, Any],
    norms: dict[str, Any],
    qkv: dict[str, Any],
    *,
    acts: list[dict[str, Any]] | None = None,
    glu: dict[str, Any] | None = None,
    rope: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The whole ground truth of one architecture, less what torch counts."""
    return {
        "layers": layers,
        "attention": attention,
        "norms": norms,
        "qkv": qkv,
        "gemm_bias_act": acts or [],
        "glu": glu,
        "rope": rope or {"applications": 0},
        **more,
    }


def _is_norm(part: nn.Module) -> bool:
    if isinstance(part, (nn.LayerNorm, nn.RMSNorm)):
        return True
    name = type(part).__name__
    own_weights = any(True for _ in part.parameters(recurse=False))
    return name.endswith("Norm") and name != "GroupNorm" and own_weights


def counted(module: Positional, example: tuple[torch.Tensor, ...]) -> dict[str, dict[str, int]]:
    """Norms and linear layers that run, by their modules."""
    runs = {"norms": 0, "with_bias": 0, "without_bias": 0}

    def count(part: nn.Module, *_: Any) -> None:
        if _is_norm(part):
            runs["norms"] += 1
        else:
            runs["without_bias" if part.bias is None else "with_bias"] += 1

    linear = ("Linear", "Conv1D", "FalconLinear", "NonDynamicallyQuantizableLinear")
    hooks = [
        part.register_forward_hook(count)
        for part in module.modules()
        if _is_norm(part) or type(part).__name__ in linear
    ]
    try:
        module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    count_norms = runs.pop("norms")
    return {"norms": {"count": count_norms}, "linear": runs}
