"""What ``opfuse explain`` finds, for the text, the JSON, and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opfuse.explanation.layout import Picture
from opfuse.explanation.roofline import Cost, Gpu

FUSED, NEARLY, NOT = "fused", "nearly", "not a candidate"


@dataclass(frozen=True)
class Anchor:
    """A node of the user's model from which a reader would expect a fusion.

    ``kind`` is what it was, or nearly was, fused as; ``at`` the node that stands there now;
    ``blocker`` the node that prevents it, with ``reason`` and ``advice``.
    """

    node: str
    op: str
    status: str
    kind: str = ""
    at: str = ""
    blocker: str = ""
    reason: str = ""
    advice: str = ""

    def __str__(self) -> str:
        if self.status == FUSED:
            return f"fused as {self.kind} at {self.at}"
        if self.status == NEARLY:
            hint = f"; try: {self.advice}" if self.advice else ""
            return f"nearly {self.kind}, blocked by {self.blocker}: {self.reason}{hint}"
        return self.status


@dataclass(frozen=True)
class Saving:
    """What one fusion saves: ``nodes`` of the user's became ``at``."""

    kind: str
    node: str
    at: str
    nodes: int
    cost: Cost


@dataclass(frozen=True)
class Block:
    """A stretch of the model that comes ``count`` times, drawn as it was and as it is."""

    title: str
    count: int
    before: Picture
    after: Picture


@dataclass(frozen=True)
class Explanation:
    """Everything at the chosen shapes on the chosen GPU.

    ``cleaned`` is what the normal form saves before anything is fused. ``unknown`` counts the
    tensors whose sizes the shapes do not tell.
    """

    gpu: Gpu
    shapes: Mapping[str, tuple[int, ...]]
    assumed: tuple[str, ...]
    anchors: tuple[Anchor, ...]
    savings: tuple[Saving, ...]
    cleaned: Cost
    unknown: int
    blocks: tuple[Block, ...]

    @property
    def total(self) -> Cost:
        """What all fusions save together."""
        return sum((saving.cost for saving in self.savings), Cost())

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON has it, without the pictures."""
        return {
            "gpu": {"name": self.gpu.name, "source": self.gpu.source},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "assumed": list(self.assumed),
            "anchors": [vars(anchor) for anchor in self.anchors],
            "savings": [
                {"kind": s.kind, "node": s.node, "at": s.at, "nodes": s.nodes, **self.worth(s.cost)}
                for s in self.savings
            ],
            "total": self.worth(self.total),
            "cleaned": self.worth(self.cleaned),
            "unknown_sizes": self.unknown,
            "layers": [{"title": b.title, "count": b.count} for b in self.blocks],
        }

    def worth(self, cost: Cost) -> dict[str, object]:
        """Return a saving in bytes, launches, and microseconds at most."""
        return {
            "bytes": cost.bytes,
            "launches": cost.launches,
            "max_microseconds": round(cost.microseconds(self.gpu), 3),
        }
