"""What the ranks of one start have to agree in of their bundles, and what each has for itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import opfuse
from opfuse.graph.collectives import SPEAKING, Rank
from opfuse.runtime.bundle import Bundle

TOGETHER = "load the files of one opfuse shard, built alike, on all ranks"
_SHOWN = 12  # digits of a hash
_WORDS = {
    "size": "how many ranks there are",
    "plan": "what was sharded (the plan)",
    "opfuse": "the version of opfuse",
    "library": "the plugin library",
    "lock": "what the bundle was built with",
    "steps": "the order of their collectives",
}


def facts(opened: Bundle, rank: Rank) -> dict[str, Any]:
    """What a rank tells the others of its bundle."""
    lock = opened.lock
    steps = [
        (step.op, step.node, sorted(step.attributes.items()))
        for step in opened.schedule.plugins()
        if step.op in SPEAKING
    ]
    built_for = "any GPU" if lock.gpu is None else lock.gpu.compute_capability
    return {
        "rank": rank.rank,
        "size": rank.size,
        "plan": rank.plan[:_SHOWN],
        "opfuse": f"{opfuse.__version__} (the bundle {lock.opfuse})",
        "library": lock.library[:_SHOWN],
        "lock": f"{lock.module} {lock.tensorrt} for {built_for}",
        "steps": hashlib.sha256(repr(steps).encode()).hexdigest()[:_SHOWN],
    }


def difference(told: Sequence[Mapping[str, Any]]) -> str:
    """In what the ranks differ, by rank; empty where they are the parts of one.

    Args:
        told: What :func:`facts` has of each; ranks that have met name their ``"gpu"`` too.
    """
    for rank, known in enumerate(told):
        if known["rank"] != rank:
            return f"rank {rank} was given the file of rank {known['rank']}"
    for name, words in _WORDS.items():
        for rank, known in enumerate(told):
            if known[name] != told[0][name]:
                return f"ranks 0 and {rank} differ in {words}: {told[0][name]} and {known[name]}"
    places: dict[str, int] = {}
    for rank, known in enumerate(told):
        if "gpu" in known and (first := places.setdefault(known["gpu"], rank)) != rank:
            return f"ranks {first} and {rank} are on one GPU: {known['gpu']}"
    return ""
