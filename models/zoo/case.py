"""One architecture ready for an exporter: a module, its inputs, and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

# Every file is compared with torch at these sizes; names that a model does not use are ignored.
SIZES = (
    {"batch": 2, "seq": 8, "past": 6, "source": 7, "samples": 1600},
    {"batch": 3, "seq": 13, "past": 5, "source": 9, "samples": 2240},
    {"batch": 1, "seq": 1, "past": 1, "source": 1, "samples": 800},
)


@dataclass(frozen=True)
class Input:
    """One input: its kind, and its shape of numbers, names, and sums of both.

    Kinds: ``ids:N`` random integers in [3, N); ``types`` 0 or 1; ``padmask`` 1 where a token is,
    0 behind the end; ``positions0`` 0, 1, ... in each row; ``positions`` the same from the size of
    the past on; ``float`` standard normal in the model's dtype.
    """

    kind: str
    shape: tuple[int | str, ...]


IDS = Input("ids:256", ("batch", "seq"))
PADDING = Input("padmask", ("batch", "seq"))
POSITIONS = Input("positions0", ("batch", "seq"))


@dataclass(frozen=True)
class Case:
    """What is exported.

    ``call`` takes the module and the inputs by name and gives the outputs in the order of
    ``outputs``. ``truth`` is the ground truth, from the config and the modelling code; ``fp16`` has
    the parts of it that are different where the model computes in fp16.
    """

    model: nn.Module
    inputs: Mapping[str, Input]
    truth: dict[str, Any]
    outputs: Sequence[str] = ("last_hidden_state",)
    call: Callable[..., Any] = lambda model, **inputs: model(**inputs)
    fp16: Mapping[str, Any] = field(default_factory=dict)


class Positional(nn.Module):
    """A case's module with its inputs by position: both exporters name them reliably so."""

    def __init__(self, case: Case):
        super().__init__()
        self.model = case.model
        self.names = tuple(case.inputs)
        self.call = case.call
        self.count = len(case.outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.call(self.model, **dict(zip(self.names, tensors, strict=True)))
        if isinstance(out, torch.Tensor):
            return (out,)
        values = out if isinstance(out, tuple) else out.to_tuple()
        return tuple(values[: self.count])


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep activations near one, so that a wrong number shows."""
    generator = torch.Generator().manual_seed(seed)
    transposed = {id(part.weight) for part in model.modules() if type(part).__name__ == "Conv1D"}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
                continue
            fan_in = parameter[0].numel()
            if id(parameter) in transposed:
                fan_in = parameter.shape[0]
            parameter.copy_(noise / fan_in**0.5)
        for part in model.modules():
            if isinstance(part, nn.Embedding):
                part.weight.mul_(part.weight.shape[1] ** 0.5)
    return model.eval().requires_grad_(False)
