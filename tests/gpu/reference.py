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
    if activation == "silu":
        return x * torch.sigmoid(x)
    if activation == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
