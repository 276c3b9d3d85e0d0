"""What each fusion saves at the chosen shapes."""

from __future__ import annotations

from opfuse.explanation.result import Saving
from opfuse.explanation.roofline import Cost, cost
from opfuse.explanation.survey import Survey


def savings(survey: Survey) -> tuple[Saving, ...]:
    """Return the saving of every match that stands; each of the user's nodes counts once."""
    counted: set[int] = set()
    found = []
    for number, match in enumerate(survey.matches):
        gone = [i for i in survey.regions[number] if not survey.lives(i) and i not in counted]
        counted.update(gone)
        nodes = (survey.user.nodes[i] for i in gone)
        before = cost(filter(survey.drawn, nodes), survey.bytes)
        saved = before - cost(filter(survey.drawn, survey.made(number)), survey.bytes)
        kind = survey.kind(number)
        found.append(Saving(kind, match.anchor, match.node, len(gone), saved))
    return tuple(found)


def cleaned(survey: Survey) -> Cost:
    """Return what the normal form saves: nodes that are gone and that no match took."""
    gone = [
        node
        for index, node in enumerate(survey.user.nodes)
        if index not in survey.takers and survey.now(index) is None
    ]
    return cost(filter(survey.drawn, gone), survey.bytes)
