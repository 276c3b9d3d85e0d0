"""What a long stage tells while it runs; the base class is silent, the command line shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any


class Progress:
    """Receives stages and steps. Subclasses draw; this one only measures the time per stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Marks the time in which one stage of the pipeline runs; a repeated name adds up."""
        self.started(name)
        start = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - start
            self.timings[name] = self.timings.get(name, 0.0) + seconds
            self.ended(name, seconds)

    def event(self, event: Mapping[str, Any]) -> None:
        """Takes an event of a child process; keys: ``text``, ``done``, ``total``, each optional."""
        self.step(str(event.get("text", "")), event.get("done", 0), event.get("total", 0))

    def started(self, name: str) -> None:
        """A stage begins."""

    def ended(self, name: str, seconds: float) -> None:
        """A stage has ended, well or not."""

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """The running stage is at ``text``, with ``done`` of ``total`` done where that is known."""
