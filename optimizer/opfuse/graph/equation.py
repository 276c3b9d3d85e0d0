"""The equation of an Einsum with a letter for every axis, those that are only dots included."""

from __future__ import annotations

import string
from collections.abc import Sequence

_DOTS = "..."


def written_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """Return the letters of each operand and of the result; None where the ranks do not fit.

    Dots stand for any number of axes, the last of which are those of all operands. A result that
    is not given has them and then what stands once, by the alphabet (ai.onnx Einsum-12).
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    if not arrow:
        once = (c for c in set(left) - {",", "."} if left.count(c) == 1)
        out = (_DOTS if _DOTS in left else "") + "".join(sorted(once))
    counts = [rank - len(term.replace(_DOTS, "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(n < 0 or (n and _DOTS not in t) for t, n in zip(terms, counts, strict=True)):
        return None
    dotted = (n for term, n in zip(terms, counts, strict=True) if _DOTS in term)
    most = max(dotted, default=0)
    unused = [c for c in string.ascii_letters if c not in equation]
    if most > len(unused):
        return None
    dots = "".join(unused[:most])
    parts = zip(terms, counts, strict=True)
    return [t.replace(_DOTS, dots[most - n :]) for t, n in parts], out.replace(_DOTS, dots)
