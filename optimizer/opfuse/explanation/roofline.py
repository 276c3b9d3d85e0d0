"""What a fusion saves at most: bytes that no longer cross a GPU's memory bus, and launches.

Every operator counts as one kernel that reads its inputs and writes its outputs once. Runtimes fuse
some of that themselves, so a saving told from it is an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_graphsurgeon as gs

# An assumption, of the size that measurements have: a V100 spends 3.8 us on each of many kernels
# that run 2.9 us, 3.4 us in a CUDA graph, and 9.6 us when the host waits for each one
# (Gray, "Getting Started with CUDA Graphs", developer.nvidia.com/blog/cuda-graphs, 2019).
LAUNCH_SECONDS = 2e-6
# Readers can look through these in place.
VIEWS = frozenset(
    ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice", "Dropout")
)
# Made while the engine is built.
FREE = frozenset(("Constant", "Shape", "Size"))


@dataclass(frozen=True)
class Gpu:
    """One GPU: bytes/s of its memory, dense fp16 Tensor FLOP/s with fp32 sums, and who says so."""

    name: str
    bandwidth: float
    fp16_flops: float
    source: str

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.bandwidth / 1e12:g} TB/s, "
            f"{self.fp16_flops / 1e12:g} TFLOP/s fp16 dense)"
        )


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 2.039e12, 312e12, "NVIDIA A100 datasheet (A100 80GB SXM), 2021"),
        Gpu("H100", 3.35e12, 989.4e12, "NVIDIA H100 datasheet (H100 SXM), 2023; sparse halved"),
        Gpu("H200", 4.8e12, 989.4e12, "NVIDIA H200 datasheet (H200 SXM), 2024; sparse halved"),
        Gpu("B200", 8e12, 2250e12, "NVIDIA Blackwell datasheet (HGX B200, one GPU), 2024"),
        Gpu("L4", 0.3e12, 121e12, "NVIDIA L4 datasheet, 2023; sparse halved"),
        Gpu("RTX4090", 1.008e12, 165.2e12, "NVIDIA Ada GPU architecture whitepaper v2, 2023"),
        Gpu("RTX5090", 1.792e12, 209.5e12, "NVIDIA RTX Blackwell architecture whitepaper, 2025"),
    )
}


@dataclass(frozen=True)
class Cost:
    """Bytes over the memory bus, and kernels launched."""

    bytes: int = 0
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.launches + other.launches)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.launches - other.launches)

    def microseconds(self, gpu: Gpu) -> float:
        """Return the time that both take on ``gpu``."""
        return (self.bytes / gpu.bandwidth + self.launches * LAUNCH_SECONDS) * 1e6


class Operator(Protocol):
    """What a node of a graph and one of the user's have in common."""

    @property
    def op(self) -> str:
        """The operator's type."""

    @property
    def inputs(self) -> Sequence[gs.Tensor]:
        """What it reads."""

    @property
    def outputs(self) -> Sequence[gs.Tensor]:
        """What it writes."""


def cost(nodes: Iterable[Operator], size: Callable[[gs.Tensor], int]) -> Cost:
    """Return what ``nodes`` cost, one kernel each.

    Args:
        nodes: Operators; views and what is computed when building cost nothing.
        size: The bytes of a tensor; 0 where they are not known.
    """
    total = Cost()
    for node in nodes:
        if node.op not in VIEWS and node.op not in FREE:
            read = {id(tensor): tensor for tensor in node.inputs if tensor.name}
            moved = sum(map(size, (*read.values(), *node.outputs)))
            total += Cost(moved, 1)
    return total
