"""What a shipped table of measurements says of plugins that nobody measured here.

A row of an op has the sizes of a region that was measured, and the time of that region with the
plugin over that without. Sizes are the elements of the op's first output and of its first two
inputs: for a product these three say how many rows, columns, and terms there are, for attention how
many queries and keys. What lies between rows is a mean of them all, in which a row weighs less by
the square of its distance (Shepard 1968), in powers of two: at a row that row counts most (what is
estimated there is up to 16 % off what it says), far from all their common gain does, and one that
noise moved is outvoted by its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log, log2
from pathlib import Path
from typing import Any

from opfuse.engine.verdicts import APART, EXACT, LEAST_GAIN, LEAVE, WORTH, Sizes, Verdict, row

_TABLES = Path(__file__).parent / "tables"
_OF_TABLE = 0.01  # a gain that others measured, in other surroundings, has to be of TensorRT's time
_NEAR = 0.05  # a square of a distance within which a row has all the weight that it can

Rows = Sequence[tuple[Sequence[int], float]]


def table(capability: str) -> dict[str, Any]:
    """The shipped measurements of an architecture; empty where there are none."""
    path = _TABLES / f"sm_{capability.replace('.', '')}.json"
    if not path.is_file():
        return {}
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def ratio(rows: Rows, sizes: Sequence[int]) -> float:
    """The time with a plugin over that without, at these sizes, by the rows of its op."""
    weights = [1 / (_NEAR + _distance(measured, sizes)) for measured, _ in rows]
    logs = [weight * log(found) for weight, (_, found) in zip(weights, rows, strict=True)]
    return exp(sum(logs) / sum(weights))


def _distance(a: Sequence[int], b: Sequence[int]) -> float:
    """The square of the distance of two sizes in powers of two."""
    pairs = zip(a, b, strict=False)  # an op without a second input has fewer
    return sum(log2(max(one, 1) / max(other, 1)) ** 2 for one, other in pairs)


def by_table(
    facts: Mapping[str, Any],
    ops: Sequence[str],
    work: Sizes,
    *,
    apart: bool = False,
    kinds: Mapping[str, str] | None = None,
) -> Verdict:
    """What a shipped table says of a group of plugins.

    Ops that are not in the table are left, as are those of a kind (engine/kinds) that has no row
    there. ``apart`` is as for `verdicts.decide`.
    """
    kinds = kinds or {}
    names = {op: row(op, kinds) for op in ops}
    known = facts.get("ops", {})
    rows = {op: known[names[op]] for op in ops if names[op] in known}
    ratios = {op: ratio(measured, work.get(op, ())) for op, measured in rows.items()}
    taken, sparing = [], []
    for op, found in ratios.items():
        margin = LEAST_GAIN if apart else -_OF_TABLE
        wins = found <= 1 + (WORTH if op in EXACT else margin)
        taken += [op] * wins
        sparing += [op] * (wins or (apart and found <= 1 + APART))
    source = f"the table of {facts.get('gpu', '?')} of {facts.get('date', '?')}"
    if not facts:
        source = "opfuse ships no table of this GPU, --tune measures"
    lacks = tuple(name for name in names.values() if facts and name not in known)
    instead = "" if sparing == taken else "+".join(sparing)
    made = Verdict("+".join(taken) or LEAVE, tuple(ops), {}, "", source, {}, instead)
    return replace(made, kinds=kinds, lacks=lacks, ratios=ratios)
