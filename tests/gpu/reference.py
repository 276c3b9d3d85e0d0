"""The definitions in float64; the norms take the op's own rounded sum, as the ops do."""

from __future__ import annotations

import math

import torch


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> torch.Tensor:
    """[..., cols], [cols] -> [..., cols] in float64."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma.double()


def layer_norm(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """[..., cols], [cols], [cols] -> [..., cols] in float64."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return centred / scale * gamma.double() + beta.double()


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Elementwise, in float64."""
    x = x.double()
    if activation == "none":
        return x
    if activation == "relu":
        return x.relu()
    if activation == "silu":
        return x * torch.sigmoid(x)
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if activation == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def masked_softmax(
    scores: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    """[..., queries, keys] in float64; ``mask`` broadcasts, and may be in another type."""
    logits = scores.double() * scale
    if mask is not None:
        logits = logits + mask.double()
    if causal:
        queries, keys = scores.shape[-2:]
        visible = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
        logits = logits.where(visible.tril(keys - queries), -math.inf)
    return logits.softmax(-1)


def group_norm_silu(
    x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, groups: int, epsilon: float
) -> torch.Tensor:
    """[batch, channels, ...], [channels], [channels] -> [batch, channels, ...] in float64."""
    split = x.double().reshape(x.shape[0], groups, -1)
    centred = split - split.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    column = (1, -1) + (1,) * (x.dim() - 2)
    y = unit.reshape(x.shape) * gamma.double().view(column) + beta.double().view(column)
    return y * torch.sigmoid(y)


def rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    """[..., size], [..., turning] -> [..., size] in float64; what is behind turning stays."""
    front, rest = x.double().tensor_split([cos.shape[-1]], -1)
    if interleaved:
        turned = torch.stack((-front[..., 1::2], front[..., ::2]), -1).flatten(-2)
    else:
        low, high = front.chunk(2, -1)
        turned = torch.cat((-high, low), -1)
    return torch.cat((front * cos.double() + turned * sin.double(), rest), -1)
