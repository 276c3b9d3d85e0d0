"""CUDA graphs of launches by torch, and the time of a replay."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

BURST, WARM_UPS, ROUNDS, PAUSE_S = 30, 3, 5, 0.1


class Captured:
    """A CUDA graph of calls of ``launch(i)``, in order.

    Args:
        launch: What it returns is dropped at once, so that torch gives later calls its memory.
        launches: How many calls.
        warm_up: How many calls come before, outside of the graph.
        stream: Where those run; one of their own otherwise.
        keep: Hold what the calls return as long as the graph is there.
    """

    def __init__(
        self,
        launch: Callable[[int], Any],
        launches: int = 1,
        *,
        warm_up: int = 1,
        stream: torch.cuda.Stream | None = None,
        keep: bool = False,
    ) -> None:
        with torch.cuda.stream(stream or torch.cuda.Stream()):
            for index in range(warm_up):
                launch(index)
        torch.cuda.synchronize()
        self._launches, self._kept = launches, []
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for index in range(launches):
                made = launch(index)
                if keep:
                    self._kept.append(made)
                del made

    def microseconds(self) -> float:
        """The time of one call in a replay, by events around it; waits for its end."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000 / self._launches


def in_bursts(graphs: Mapping[str, Captured]) -> dict[str, float]:
    """Microseconds of a replay of each graph where the GPU is not held at its power limit.

    30 replays, each waited for, after three more and a pause; the median of them, and of five such
    rounds, in each of which the graphs take turns in random order. As torch's, cuDNN's, and
    cuBLAS's kernels are usually timed; a short kernel's time holds some of its launch.
    """
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name in random.sample(sorted(graphs), len(graphs)):
            time.sleep(PAUSE_S)
            replays = [graphs[name].microseconds() for _ in range(WARM_UPS + BURST)]
            found[name].append(median(replays[WARM_UPS:]))
    return {name: median(medians) for name, medians in found.items()}
