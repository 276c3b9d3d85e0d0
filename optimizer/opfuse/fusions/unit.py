"""x / sqrt(mean + epsilon), in which both norms end: as exporters write it, and as few mean it."""

from __future__ import annotations

from dataclasses import dataclass

from opfuse.fusions.guards import equals
from opfuse.graph.fusion import Found, Miss
from opfuse.graph.pattern import Const, Op, Pattern, any_of, maybe_cast, op


@dataclass(frozen=True, eq=False)
class Unit:
    """The pattern ``whole``, with the parts that :func:`epsilon_of` asks about."""

    whole: Pattern
    root: Op
    outside: Op
    less: Op


def unit(x: Pattern, mean: Pattern) -> Unit:
    """Return the pattern of ``x`` over the root of ``mean``, which is its mean square."""
    less = op.Sub(mean, Const("epsilon"))
    variance = any_of(op.Add(mean, Const("epsilon")), less, mean)
    root = op.Sqrt(maybe_cast(variance))
    outside = op.Add(op.Sqrt(mean), Const("epsilon"))
    below = any_of(maybe_cast(root), outside)
    inverse = any_of(
        op.Reciprocal(below),
        op.Div(Const("one"), below),
        op.Pow(any_of(root, variance), Const("exponent")),
    )
    return Unit(any_of(op.Mul(x, inverse), op.Div(x, below)), root, outside, less)


def epsilon_of(found: Found, part: Unit) -> float:
    """Return epsilon, the constants around it checked.

    Raises:
        Miss: It stands outside of the root, or another constant is none of the formula.
    """
    equals(found, "one", 1.0)
    if found.has("exponent"):
        equals(found, "exponent", -1.0 if found.has(part.root) else -0.5)
    if found.has(part.outside):
        raise Miss("adds epsilon outside of the root", found.node(part.outside))
    if found.has(part.less):
        raise Miss("subtracts epsilon", found.node(part.less))
    return found.scalar("epsilon") if found.has("epsilon") else 0.0
