"""Fused graph -> what a reader wants to know of it: anchors, savings, layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opfuse.explanation.anchors import anchors
from opfuse.explanation.drawing import Drawing
from opfuse.explanation.result import Explanation
from opfuse.explanation.roofline import GPUS
from opfuse.explanation.savings import cleaned, savings
from opfuse.explanation.survey import Survey

if TYPE_CHECKING:
    from opfuse.stages.fuse import Fused


def explain(
    fused: Fused,
    gpu: str,
    shapes: Mapping[str, tuple[int, ...]],
    assumed: tuple[str, ...] = (),
) -> Explanation:
    """Tell what fused, what nearly did, and what that is worth.

    Args:
        fused: A fused graph with its record.
        gpu: A name of ``GPUS``.
        shapes: Of every input, by name.
        assumed: What of these shapes nobody had said.
    """
    # The order of the report: a mark in a picture is a number in its list.
    misses = sorted(fused.misses, key=lambda m: (m.kind, m.anchor, m.node, m.reason))
    survey = Survey(fused.graph, fused.user, fused.facts, fused.matches, shapes)
    saved = savings(survey)
    removed = cleaned(survey)
    return Explanation(
        GPUS[gpu],
        dict(shapes),
        assumed,
        anchors(survey, misses),
        saved,
        removed,
        len(survey.unknown),
        tuple(Drawing(survey, misses).blocks()),
    )
