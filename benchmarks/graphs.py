"""CUDA graphs of launches by torch, and the time of a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


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
