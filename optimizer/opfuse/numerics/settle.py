"""Decides whether two results differ by more than rounding explains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from opfuse.numerics.compare import Array, Difference, compare, distance, is_float

# The fused form may be this much worse than the original against the precise result.
_SLACK = 2.0
# An input on which the original itself is this many tolerances off says nothing about the fusion.
_ILL_CONDITIONED = 10.0


@dataclass(frozen=True)
class Outcome:
    """What one run says.

    Attributes:
        error: The relative error of the fused form.
        reason: Why it is refuted; empty where it is not.
        open: The input decides nothing.
        refused: The fused form did not run at all.
    """

    error: float = 0.0
    reason: str = ""
    open: bool = False
    refused: bool = False


def settle(
    expected: Sequence[Array],
    actual: Sequence[Array],
    precise: Callable[[], list[Array] | None],
    tolerance: float,
    shaken: Callable[[], Iterable[list[Array]]] = tuple,
) -> Outcome:
    """Judge the outputs of the fused form, ``actual``, by those of the original, ``expected``.

    Within the tolerance of each other they agree. Beyond it ``precise``, the original in float64,
    settles which of them is wrong: the fused form passes if it is no further from that than the
    tolerance or twice the original's own error, and where it is finite although the original has
    overflowed. NaN and infinity that the precise result has too must be in both. The original's own
    error is one draw, which may happen to be small where a softmax is decided by the last bits of
    its scores: results of ``shaken``, the precise ones of inputs that are a unit in the last place
    off, say how large it might have been.
    """
    outcomes = [
        _settle_output(number, reference, result, precise, tolerance, shaken)
        for number, (reference, result) in enumerate(zip(expected, actual, strict=True))
    ]
    refuted = next((outcome for outcome in outcomes if outcome.reason), None)
    if refuted is not None:
        return refuted
    error = max((outcome.error for outcome in outcomes), default=0.0)
    return Outcome(error, open=any(outcome.open for outcome in outcomes))


def _settle_output(
    number: int,
    expected: Array,
    actual: Array,
    precise: Callable[[], list[Array] | None],
    tolerance: float,
    shaken: Callable[[], Iterable[list[Array]]],
) -> Outcome:
    plain = compare(expected, actual)
    if plain.within(tolerance):
        vacuous = is_float(expected) and expected.size > 0 and not np.isfinite(expected).any()
        return Outcome(plain.max_rel, open=vacuous)
    comparable = is_float(expected) and is_float(actual) and expected.shape == actual.shape
    results = precise() if comparable else None
    if results is None:
        return Outcome(plain.max_rel, f"output {number}: {plain}")
    truth = results[number]
    moved = partial(_moved, number, truth, shaken)
    return _arbitrate(number, expected, actual, truth, plain, tolerance, moved)


def _moved(number: int, truth: Array, shaken: Callable[[], Iterable[list[Array]]]) -> float:
    """How far rounding the inputs moves the precise result."""
    return max((distance(truth, other[number]).max_rel for other in shaken()), default=0.0)


def _arbitrate(
    number: int,
    expected: Array,
    actual: Array,
    truth: Array,
    plain: Difference,
    tolerance: float,
    moved: Callable[[], float],
) -> Outcome:
    refuted = Outcome(plain.max_rel, f"output {number}: {plain}")
    if truth.shape != expected.shape:
        return refuted
    if plain.reason:
        overflowed = np.isfinite(truth) & ~np.isfinite(expected)
        settled = np.where(overflowed, truth.astype(np.float64), expected.astype(np.float64))
        if not np.array_equal(np.isfinite(settled), np.isfinite(actual)):
            return refuted
    theirs, ours = distance(truth, expected).max_rel, distance(truth, actual).max_rel
    limit = _ILL_CONDITIONED * tolerance
    if ours > max(tolerance, min(_SLACK * theirs, limit)):
        theirs = max(theirs, moved())
    if ours <= max(tolerance, min(_SLACK * theirs, limit)):
        return Outcome(ours)
    if (theirs > limit or ours <= _SLACK * theirs) and not plain.reason:
        return Outcome(open=True)
    return Outcome(ours, f"output {number}: {plain}, of which {theirs:.2g} is the original's own")
