"""A planted blocker is named, with its reason and the right fix, on the line of its anchor."""

from __future__ import annotations

import pytest

from opfuse.explanation.result import Anchor
from opfuse.fusions import DEFINITIONS, MERGES, STANDARD
from opfuse.stages.explain import explain
from tests.explanation.planted import PLANTED


def test_every_kind_has_a_blocker():
    """What blocks one that is made of fused nodes blocks these, or is no candidate."""
    kinds = {*DEFINITIONS, *STANDARD, *MERGES} - {
        *("AddRmsNorm", "QkNormRope", "GatedGemm", "PackedAttention", "AllReduceAddNorm")
    }
    assert kinds <= {planted.kind for planted in PLANTED.values()}


@pytest.mark.parametrize("name", PLANTED)
def test_the_blocker_and_the_fix_are_named(name):
    planted = PLANTED[name]
    said = [
        (miss.node.split(" ")[0], miss.reason, miss.advice)
        for miss in planted.outcome().fused.misses
        if miss.kind == planted.kind
    ]
    assert [blocker for blocker, _, _ in said] == [planted.blocker]
    assert planted.reason in said[0][1]
    assert planted.advice in said[0][2]


@pytest.mark.parametrize("name", [name for name in PLANTED if PLANTED[name].anchor])
def test_the_anchor_tells_of_it(name):
    planted = PLANTED[name]
    explanation = explain(planted.outcome().fused, "H100", {})
    said = {anchor.node: anchor for anchor in explanation.anchors}[planted.anchor]
    assert isinstance(said, Anchor)
    assert (said.status, said.kind) == ("nearly", planted.kind), str(said)
    assert said.blocker.split(" ")[0] == planted.blocker
    assert planted.reason in said.reason
    assert planted.advice in said.advice
