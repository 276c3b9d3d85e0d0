"""What the child process of the proof runs, and what it tells while it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opfuse import child
from opfuse.numerics.case import Case
from opfuse.numerics.prover import judge
from opfuse.numerics.whole import Comparison, Subject, compare_models


def prove(
    cases: Sequence[Case],
    pair: tuple[Subject, Subject] | None,
    seed: int,
    rtol: float | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Comparison | None:
    """Judge the cases in order and, if ``pair`` is given and all are proven, compare the models.

    They run at sizes of our own, which are small; at ``shapes`` where the original takes none.
    Verdicts travel as events, ``{"case": i}`` before and ``{"case": i, "verdict": Verdict}``
    behind each, so that a crash loses none of those before it.
    """
    proven = True
    for number, case in enumerate(cases):
        child.emit({"case": number, "text": case.kind})
        verdict = judge(case, seed, rtol)
        child.emit({"case": number, "text": case.kind, "verdict": verdict})
        proven = proven and not verdict.reason
    if pair is None or not proven:
        return None
    child.emit({"model": "original", "text": "the original model"})
    found = compare_models(*pair, seed, rtol)
    return compare_models(*pair, seed, rtol, shapes) if found.not_run and shapes else found
