"""The ring of integer polynomials over named sizes, with exact division.

What a polynomial cannot hold (an inexact quotient, a maximum) is an opaque atom inside it: a
canonical call such as ``max(past, seq)``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

# A quotient or a maximum of quotients nests without end in a hostile model.
_MAX_TERMS = 128
_MAX_TEXT = 1000
_MAX_DEGREE = 32


@dataclass(frozen=True)
class Call:
    """An operation that is no polynomial, on canonical arguments; ``text`` is how it reads."""

    function: str
    arguments: tuple[Dim, ...]
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text


Atom: TypeAlias = str | Call
Monomial: TypeAlias = tuple[Atom, ...]
Terms: TypeAlias = dict[Monomial, int]


@dataclass(frozen=True)
class Sym:
    """An integer that is not known yet; equal expressions compare and hash equal.

    ``terms`` is sorted and never a constant alone: arithmetic that ends in a constant returns
    an ``int``. Build one with `symbol`, `parse`, or arithmetic, never directly.
    """

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, self, -1)

    def __neg__(self) -> Dim:
        return _sum(0, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        return _product(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return _quotient(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return _quotient(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return _remainder(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return _remainder(other, self)

    def __str__(self) -> str:
        text = " + ".join(_term_text(monomial, factor) for monomial, factor in self.terms)
        return text.replace("+ -", "- ")

    __repr__ = __str__

    def symbols(self) -> frozenset[str]:
        """The names that the expression depends on, those inside opaque calls included."""
        names: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                names |= {atom} if isinstance(atom, str) else _symbols_of(atom.arguments)
        return frozenset(names)

    def evaluate(self, mapping: Mapping[str, int]) -> int:
        """The value under ``mapping`` from symbol to size.

        Raises:
            KeyError: A symbol has no value in ``mapping``.
            ZeroDivisionError: A quotient's divisor is zero there.
        """
        return sum(
            factor * prod(_atom_value(atom, mapping) for atom in monomial)
            for monomial, factor in self.terms
        )


Dim: TypeAlias = int | Sym


def symbol(name: str) -> Sym:
    """The size called ``name``."""
    return Sym((((name,), 1),))


def evaluate(dim: Dim, mapping: Mapping[str, int]) -> int:
    """The value of ``dim``, an integer included; raises as `Sym.evaluate`."""
    return dim.evaluate(mapping) if isinstance(dim, Sym) else dim


def _terms(value: Dim) -> Terms:
    if isinstance(value, Sym):
        return dict(value.terms)
    number = int(operator.index(value))
    return {(): number} if number else {}


def _order(monomial: Monomial) -> tuple[int, tuple[tuple[bool, str], ...]]:
    # Degree first, then lexicographic: admissible, so that long division terminates.
    return -len(monomial), tuple(_atom_order(atom) for atom in monomial)


def _atom_order(atom: Atom) -> tuple[bool, str]:
    return isinstance(atom, Call), str(atom)


def _from_terms(terms: Terms) -> Dim:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    if len(kept) > _MAX_TERMS or any(abs(factor) >= 1 << 63 for factor in kept.values()):
        raise OverflowError("the symbolic expression has grown too large")
    if len(kept) == 1:
        return Sym(tuple(kept.items()))
    return Sym(tuple(sorted(kept.items(), key=lambda term: _order(term[0]))))


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    terms = _terms(a)
    for monomial, factor in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + sign * factor
    return _from_terms(terms)


def _product(a: Dim, b: Dim) -> Dim:
    terms: Terms = {}
    right = _terms(b)
    for left_monomial, left_factor in _terms(a).items():
        for monomial, factor in right.items():
            joined = _join(left_monomial, monomial)
            terms[joined] = terms.get(joined, 0) + left_factor * factor
    return _from_terms(terms)


def _join(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    if len(a) + len(b) > _MAX_DEGREE:
        raise OverflowError("the symbolic expression has grown too large")
    return tuple(sorted(a + b, key=_atom_order))


def _without(a: Monomial, b: Monomial) -> Monomial | None:
    """``a / b``, or None where ``b`` does not divide it."""
    rest = list(a)
    for atom in b:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _exact(a: Dim, b: Sym) -> Dim | None:
    """``a / b`` by long division, or None where a remainder is left."""
    rest, divisor, quotient = _terms(a), _terms(b), Terms()
    lead = min(divisor, key=_order)
    while rest:
        top = min(rest, key=_order)
        monomial = _without(top, lead)
        if monomial is None or rest[top] % divisor[lead]:
            return None
        factor = rest[top] // divisor[lead]
        quotient[monomial] = factor
        for other, other_factor in divisor.items():
            joined = _join(monomial, other)
            rest[joined] = rest.get(joined, 0) - factor * other_factor
            if not rest[joined]:
                del rest[joined]
    return _from_terms(quotient)


def _quotient(a: Dim, b: Dim) -> Dim:
    if isinstance(b, int):
        return _quotient_by_int(a, b)
    exact = _exact(a, b)
    if exact is not None:
        return exact
    a, b = _cancel(a, b)
    return _quotient_by_int(a, b) if isinstance(b, int) else opaque("floordiv", (a, b))


def _quotient_by_int(a: Dim, b: int) -> Dim:
    if b < 0:
        a, b = -a, -b
    if isinstance(a, int) or b == 1:
        return a // b if isinstance(a, int) else a
    # floor((b*q + r) / b) = q + floor(r / b): one spelling for seq + seq//2 and (3*seq)//2.
    whole = _from_terms({monomial: factor // b for monomial, factor in a.terms})
    rest = _from_terms({monomial: factor % b for monomial, factor in a.terms})
    return whole + (rest // b if isinstance(rest, int) else opaque("floordiv", (rest, b)))


def _cancel(a: Dim, b: Sym) -> tuple[Dim, Dim]:
    """Both without the atoms that every one of their terms shares."""
    monomials = [*_terms(a), *_terms(b)]
    for atom in monomials[-1]:
        shorter = [_without(monomial, (atom,)) for monomial in monomials]
        if all(monomial is not None for monomial in shorter):
            one = symbol(atom) if isinstance(atom, str) else Sym((((atom,), 1),))
            rest_a, rest_b = _exact(a, one), _exact(b, one)
            if rest_a is not None and isinstance(rest_b, Sym):
                return _cancel(rest_a, rest_b)
            if rest_a is not None and rest_b is not None:
                return rest_a, rest_b
    return a, b


def _remainder(a: Dim, b: Dim) -> Dim:
    if isinstance(b, Sym):
        return 0 if _exact(a, b) is not None else opaque("mod", (a, b))
    if b < 0:
        return -_remainder(-a, -b)
    if isinstance(a, Sym):
        a = _from_terms({monomial: factor % b for monomial, factor in a.terms})
    return a % b if isinstance(a, int) else opaque("mod", (a, b))


def _broadcast_sizes(*sizes: int) -> int:
    return next((size for size in sizes if size != 1), 1)


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
    "broadcast": _broadcast_sizes,
}
_INFIX = {"floordiv": "//", "mod": "%"}


def opaque(function: str, arguments: tuple[Dim, ...]) -> Sym:
    """A symbol for ``function`` of ``arguments``; the caller has brought them into one order."""
    if function in _INFIX:
        left, right = (_operand_text(argument) for argument in arguments)
        text = f"({left} {_INFIX[function]} {right})"
    else:
        text = f"{function}({', '.join(map(str, arguments))})"
    if len(text) > _MAX_TEXT:
        raise OverflowError("the symbolic expression has grown too large")
    return Sym((((Call(function, arguments, text),), 1),))


def _operand_text(dim: Dim) -> str:
    simple = isinstance(dim, int) or (len(dim.terms) == 1 and dim.terms[0][1] == 1)
    return str(dim) if simple and "*" not in str(dim) else f"({dim})"


def _term_text(monomial: Monomial, factor: int) -> str:
    if not monomial:
        return str(factor)
    text = "*".join(map(str, monomial))
    return text if factor == 1 else f"-{text}" if factor == -1 else f"{factor}*{text}"


def _atom_value(atom: Atom, mapping: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return mapping[atom]
    return _FUNCTIONS[atom.function](*(evaluate(dim, mapping) for dim in atom.arguments))


def _symbols_of(dims: Iterable[Dim]) -> set[str]:
    return {name for dim in dims if isinstance(dim, Sym) for name in dim.symbols()}
