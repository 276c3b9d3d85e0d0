"""Whether our conversion of a model is behind another tool's, in Casts or in error.

An error is the median over several draws of the inputs. Two are the same where they are closer
than the draws of either are to their median. The draws share the roundings of the weights, so that
this says too little of luck: the tolerance is never below 5 %, and never above 20 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

ERRORS = ("ort", "rounded", "reference")
_LEAST, _MOST = 0.05, 0.20
_WRONG = 3.0  # times our error: that is no rounding, so its Casts are no merit

Row = Mapping[str, Any]


def middle(row: Row, name: str) -> float:
    """The median of one kind of error; infinite where the model does not run or overflows."""
    found = row.get(name)
    return median(found) if isinstance(found, Sequence) and not isinstance(found, str) else math.inf


def spread(row: Row, name: str) -> float:
    """How far the draws are from their median at most, relative to it."""
    found, half = row[name], middle(row, name)
    if not half or not math.isfinite(max(found)):
        return 0.0
    return max(abs(error - half) for error in found) / half


def right(other: Row, ours: Row) -> bool:
    """Whether another tool's model is valid, builds, and is wrong by roundings only."""
    if other.get("checker") is not True or other.get("engine", True) is not True:
        return False
    return middle(other, "rounded") < _WRONG * middle(ours, "rounded")


def behind(ours: Row, others: Sequence[Row]) -> list[str]:
    """In what ours is behind another tool's on this model; empty where it is not."""
    if "failed" in ours:
        return [f"opfuse failed: {ours['failed']}"]
    checks = ("checker", "engine")
    found = [f"{name} does not take it" for name in checks if ours.get(name, True) is not True]
    for other in others:
        if "failed" in other or not right(other, ours):
            continue
        if other["casts"] < ours["casts"]:
            found.append(f"{other['tool']} has {other['casts']} Casts")
        for name in ERRORS:
            theirs, own = middle(other, name), middle(ours, name)
            if math.isinf(theirs):
                continue
            allowed = min(max(spread(other, name), spread(ours, name), _LEAST), _MOST)
            if not own <= theirs * (1 + allowed):
                text = f"{name} {own:.2e}, {other['tool']} {theirs:.2e}"
                found.append(f"{text}: more than {allowed:.0%} above")
    return found


def casts(ours: Row, others: Sequence[Row]) -> str:
    """How our Casts stand to those of the others that are right."""
    if "failed" in ours:
        return ""
    rivals = [row for row in others if "failed" not in row and right(row, ours)]
    most = min((row["casts"] for row in rivals), default=math.inf)
    if ours["casts"] == ours["floor"]:
        return "fewest there can be" if ours["casts"] == most else "fewest, at the floor"
    if ours["casts"] < most:
        return "fewest"
    return "as many" if ours["casts"] == most else "more"


def told(ours: Row, others: Sequence[Row]) -> str:
    """The verdict on one model in one line."""
    faults = behind(ours, others)
    text = f"{ours['model'][:34]:34} {ours['precision']:4}"
    if faults:
        return f"{text} BEHIND: {'; '.join(faults)}"
    ratios = [
        f"{name} {middle(ours, name) / best:.2f}"
        for name in ERRORS
        if math.isfinite(best := least(ours, others, name)) and best
    ]
    shown = f"{ours['casts']} of {ours['floor']}"
    return f"{text} casts {shown:8} {casts(ours, others):20} error {' '.join(ratios) or '-'}"


def least(ours: Row, others: Sequence[Row], name: str) -> float:
    """The smallest error of another tool whose model is right."""
    rivals = [row for row in others if "failed" not in row and right(row, ours)]
    return min((middle(row, name) for row in rivals), default=math.inf)
