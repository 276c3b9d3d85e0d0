"""x / sqrt(mean + epsilon), in which both norms end: as exporters write it, and as few mean it."""

from __future__ import annotations

from dataclasses import dataclass

from opfuse.fusions.guards import equals
from opfuse.graph.fusion import Found, Miss
from opfuse.graph.pattern import Const, Op, Pattern, any_of, op


@dataclass(frozen=True, eq=False)
class Unit:
    """The pattern ``whole``, with the parts that :func:`epsilon_of` asks about."""

    whole: Pattern
    root: Op
    outside: Op
    less: Op
    bare: Op


def unit(x: Pattern, mean: Pattern) -> Unit:
    """Return the pattern of ``x`` over the root of ``mean``, which is its mean square."""
    less = op.Sub(mean, Const("epsilon"))
    variance = any_of(op.Add(mean, Const("epsilon")), less)
    root = op.Sqrt(variance)
    outside = op.Add(op.Sqrt(mean), Const("epsilon"))
    bare = op.Sqrt(mean)
    below = any_of(root, outside, bare)
    inverse = any_of(
        op.Reciprocal(below),
        op.Div(Const("one"), below),
        op.Pow(any_of(root, bare, variance), Const("exponent")),
    )
    return Unit(any_of(op.Mul(x, inverse), op.Div(x, below)), root, outside, less, bare)


def epsilon_of(found: Found, part: Unit) -> float:
    """Return epsilon, the constants around it checked.

    Raises:
        Miss: It stands outside of the root, or another constant is none of the formula.
    """
    equals(found, "one", 1.0)
    if found.has("exponent"):
        rooted = found.has(part.root) or found.has(part.bare)
        equals(found, "exponent", -1.0 if rooted else -0.5)
    if found.has(part.bare):
        return 0.0  # onnxscript's optimizer takes Helium's 1e-8 for nothing
    if found.has(part.outside):
        raise Miss("adds epsilon outside of the root", found.node(part.outside))
    if found.has(part.less):
        raise Miss("subtracts epsilon", found.node(part.less))
    return found.scalar("epsilon")
