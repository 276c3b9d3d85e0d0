"""What a check found: one expectation for each thing that the lock pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
SCHEMA = 1


@dataclass(frozen=True)
class Expectation:
    """One thing that the lock pins.

    ``section`` and ``name`` are its place in the lock. ``message`` is one line: what changed, or
    why nothing was compared; a passed one has it where the reader should know something all the
    same. ``fix`` is what to do, ``node`` the node of the model that is to blame.
    """

    section: str
    name: str
    status: str = PASSED
    message: str = ""
    fix: str = ""
    node: str = ""

    @property
    def title(self) -> str:
        """Its place in the lock, as ``fusions.FlashAttention``."""
        return f"{self.section}.{self.name}" if self.name else self.section


@dataclass(frozen=True)
class Change:
    """One value that ``--update`` changed; None stands for one that is not in the lock."""

    place: str
    old: object
    new: object


@dataclass(frozen=True)
class Check:
    """One model held against its lock.

    Attributes:
        model: The path of the model.
        lock: The path of the lock.
        expectations: In the order of the lock's sections; empty where the lock was rewritten.
        changes: What ``--update`` changed.
        written: Whether it wrote the lock.
        new: Whether there was none, or none of ours, before.
        nearly: Candidates that were not fused: kind, node, reason, advice.
        kept: What a conversion keeps in fp32: node, op, reason.
        timings: Seconds of each stage.
    """

    model: str
    lock: str
    expectations: tuple[Expectation, ...] = ()
    changes: tuple[Change, ...] = ()
    written: bool = False
    new: bool = False
    nearly: tuple[Mapping[str, str], ...] = ()
    kept: tuple[Mapping[str, str], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Expectation, ...]:
        """The expectations that failed."""
        return tuple(item for item in self.expectations if item.status == FAILED)

    def as_dict(self) -> dict[str, Any]:
        """The check in the stable schema that its JSON has."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "lock": self.lock,
            "passed": self.passed,
            "failed": len(self.failures),
            "expectations": [asdict(item) for item in self.expectations],
            "changes": [asdict(item) for item in self.changes],
            "written": self.written,
            "nearly": [dict(item) for item in self.nearly],
            "kept": [dict(item) for item in self.kept],
            "timings_s": {name: round(seconds, 4) for name, seconds in self.timings.items()},
        }
