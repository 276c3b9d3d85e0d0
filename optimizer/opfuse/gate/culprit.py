"""Why there are fewer fusions of a kind than the lock has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from opfuse.explanation.result import FUSED, NEARLY, Anchor
from opfuse.gate.neighbours import Neighbours
from opfuse.graph.match import NearMiss

_SHOWN = 3


@dataclass(frozen=True)
class Culprit:
    """One node that a fusion failed at: ``text`` names it and the reason."""

    node: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Scene:
    """What is known of the model in which a fusion is missing.

    Attributes:
        misses: The near-misses of now.
        anchors: What became of every node from which a reader would expect a fusion.
        neighbours: The nodes around each node; None where nobody looks at them.
    """

    misses: Sequence[NearMiss] = ()
    anchors: Sequence[Anchor] = ()
    neighbours: Neighbours | None = None


def new_misses(kind: str, known: Collection[str], misses: Sequence[NearMiss]) -> list[Culprit]:
    """The near-misses of a kind that are not among the nodes ``known`` from before."""
    left = Counter(known)
    found = []
    for miss in (miss for miss in misses if miss.kind == kind):
        if left[miss.node]:
            left[miss.node] -= 1
        else:
            found.append(Culprit(miss.node, f"{miss.node}: {miss.reason}", miss.advice))
    return found


def of_anchors(kind: str, scene: Scene) -> Iterator[Culprit]:
    """Yield the anchors that became something else than the others of their operator."""
    for anchor in scene.anchors:
        if anchor.status == NEARLY and anchor.kind == kind:
            yield Culprit(anchor.node, f"{anchor.node}: {anchor.reason}", anchor.advice)
    fused: dict[str, list[str]] = {}
    for anchor in scene.anchors:
        if anchor.status == FUSED and anchor.kind == kind:
            fused.setdefault(anchor.op, []).append(anchor.node)
    for anchor in scene.anchors:
        others = fused.get(anchor.op)
        if others and anchor.status != NEARLY and anchor.kind != kind:
            yield _odd(anchor, kind, others, scene.neighbours)


def _odd(anchor: Anchor, kind: str, others: Sequence[str], around: Neighbours | None) -> Culprit:
    """One anchor that is not what its like are."""
    node, why = around.unlike(anchor.node, others) if around else ("", "")
    became = f"became {anchor.kind}" if anchor.status == FUSED else "fits no pattern"
    text = f"{anchor.node} ({anchor.op}) {became}, {len(others)} others {kind}"
    if why:
        return Culprit(node, f"{text}: {why}", "write it as the others are")
    return Culprit(anchor.node, text, "compare what is around it with the others")


def told(found: Sequence[Culprit], lost: int, gained: Sequence[str]) -> str:
    """One line about the culprits; ``gained`` are the kinds that there are more of now."""
    if not found:
        instead = f" ({', '.join(gained)} instead)" if gained else ""
        return f"no candidate for it is left{instead}"
    shown = "; ".join(culprit.text for culprit in found[:_SHOWN])
    more = min(lost, len(found)) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
