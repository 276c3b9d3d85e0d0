"""Symbolic dimensions: what a tensor's shape is made of where its sizes are not known yet.

Every symbol stands for a size and so is at least zero; the order of two dimensions follows from
that alone. A dimension is an ``int`` wherever it can be.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce

from opfuse.graph.polynomial import Call, Dim, Monomial, Sym, evaluate, opaque, symbol

__all__ = [
    "Dim",
    "Sym",
    "at_least",
    "broadcast",
    "call",
    "evaluate",
    "is_opaque",
    "is_unknown",
    "maximum",
    "minimum",
    "never_equal",
    "parse",
    "product",
    "substitute",
    "symbol",
    "unknown_dim",
    "unknown_value",
]

_UNKNOWN_VALUE = "?value"
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_MAX_PARSED = 1000


@lru_cache(4096)
def parse(text: str) -> Dim:
    """A dimension from its text: ``seq``, ``past + 1``, ``2*seq``, ``min(64, seq)``, ``(a // 2)``.

    This reads what `str` writes and what torch's exporter writes as ``dim_param``. A text that is
    no expression becomes one symbol of that very name.
    """
    if _IDENTIFIER.fullmatch(text):
        return symbol(text)
    try:
        if len(text) > _MAX_PARSED:
            return symbol(text)
        return _from_syntax(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError, ArithmeticError):
        return symbol(text)


_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SPELLINGS = {"floordiv": "floordiv", "pythonmod": "mod"}


def _from_syntax(node: ast.expr) -> Dim:
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_from_syntax(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_from_syntax(node.left), _from_syntax(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name = node.func.id.lower()
        return call(_SPELLINGS.get(name, name), *map(_from_syntax, node.args))
    raise ValueError("not a dimension expression")


def unknown_dim(number: int) -> Sym:
    """A size that nothing is known of; no parsed name reads like it."""
    return symbol(f"?{number}")


def unknown_value(number: int) -> Sym:
    """An integer that nothing is known of, not even that it is at least zero."""
    return symbol(f"{_UNKNOWN_VALUE}{number}")


def is_opaque(dim: Dim) -> bool:
    """Whether the dimension is not a polynomial over the model's own symbols."""
    return isinstance(dim, Sym) and any(
        isinstance(atom, Call) or atom.startswith("?")
        for monomial, _ in dim.terms
        for atom in monomial
    )


def is_unknown(dim: Dim) -> bool:
    """Whether the dimension depends on a size that nothing is known of."""
    return isinstance(dim, Sym) and any(name.startswith("?") for name in dim.symbols())


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of a shape."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def maximum(*dims: Dim) -> Dim:
    """The largest; symbols whose order is open stay in a canonical ``max(...)``."""
    return _extreme("max", dims, at_least)


def minimum(*dims: Dim) -> Dim:
    """The smallest; symbols whose order is open stay in a canonical ``min(...)``."""
    return _extreme("min", dims, lambda a, b: at_least(b, a))


def broadcast(a: Dim, b: Dim) -> Dim:
    """The one dimension that two dimensions broadcast to, as in NumPy.

    Raises:
        ValueError: Two constants differ and neither is 1.
    """
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    constant = isinstance(a, int) and isinstance(b, int)
    if constant:
        raise ValueError(f"{a} and {b} do not broadcast")
    for one, other in ((a, b), (b, a)):
        if isinstance(one, int) or at_least(one, 2) or _caps(one, other) or _floors(one, other):
            return one
    return opaque("broadcast", _sorted({*_flat("broadcast", a), *_flat("broadcast", b)}))


def _caps(dim: Dim, other: Dim) -> bool:
    """Whether ``other`` is ``min(dim, ...)`` of sizes above zero: equal to ``dim``, or 1."""
    parts = _flat("min", other)
    return dim in parts and all(part == dim or at_least(part, 1) for part in parts)


def _floors(dim: Dim, other: Dim) -> bool:
    """Whether ``other`` is ``max(dim, 0)``: a size is that itself."""
    parts = _flat("max", other)
    return dim in parts and all(part == dim or part == 0 for part in parts)


def at_least(a: Dim, b: Dim) -> bool:
    """Whether ``a >= b`` is certain for all sizes of the symbols."""
    return _non_negative(a - b, depth=4)


def never_equal(a: Dim, b: Dim) -> bool:
    """Whether ``a != b`` is certain for all sizes of the symbols."""
    return at_least(a, b + 1) or at_least(b, a + 1)


def call(function: str, *arguments: Dim) -> Dim:
    """The function that the text form names ``floordiv``, ``mod``, ``max``, ``min``, ``broadcast``.

    Raises:
        ValueError: There is no such function, or it does not take these arguments.
    """
    if function in ("floordiv", "mod") and len(arguments) == 2:
        left, right = arguments
        return left // right if function == "floordiv" else left % right
    many: dict[str, Callable[..., Dim]] = {
        "max": maximum,
        "min": minimum,
        "broadcast": broadcast,
    }
    if function not in many or not arguments:
        raise ValueError(f"no dimension function {function} of {len(arguments)} arguments")
    return reduce(many[function], arguments)


def _sorted(dims: Iterable[Dim]) -> tuple[Dim, ...]:
    return tuple(sorted(dims, key=str))


def _flat(function: str, dim: Dim) -> tuple[Dim, ...]:
    """The arguments, where ``dim`` is a call of ``function`` and nothing else."""
    match dim:
        case Sym(terms=(((Call(function=name, arguments=arguments),), 1),)) if name == function:
            return arguments
    return (dim,)


def _extreme(function: str, dims: tuple[Dim, ...], beats: Callable[[Dim, Dim], bool]) -> Dim:
    kept: list[Dim] = []
    for new in dict.fromkeys(part for dim in dims for part in _flat(function, dim)):
        if not any(beats(old, new) for old in kept):
            kept = [old for old in kept if not beats(new, old)] + [new]
    return kept[0] if len(kept) == 1 else opaque(function, _sorted(kept))


def _non_negative(dim: Dim, depth: int) -> bool:
    if isinstance(dim, int):
        return dim >= 0
    if all(factor >= 0 and _sized(monomial, depth) for monomial, factor in dim.terms):
        return True
    return depth > 0 and any(
        _non_negative(bound, depth - 1) for bound in _lower_bounds(dim) if bound is not None
    )


def _sized(monomial: Monomial, depth: int) -> bool:
    return all(
        not atom.startswith(_UNKNOWN_VALUE) if isinstance(atom, str) else _call_sized(atom, depth)
        for atom in monomial
    )


def _call_sized(atom: Call, depth: int) -> bool:
    signs = (depth > 0 and _non_negative(argument, depth - 1) for argument in atom.arguments)
    if atom.function == "mod":
        return at_least(atom.arguments[1], 1)
    return any(signs) if atom.function == "max" else all(signs)


def _lower_bounds(dim: Sym) -> Iterable[Dim | None]:
    """Expressions not above a positive multiple of ``dim``, from what one opaque atom is."""
    for monomial, factor in dim.terms:
        if len(monomial) != 1 or isinstance(monomial[0], str):
            continue
        atom, rest = monomial[0], dim - Sym(((monomial, factor),))
        if factor < 0 and atom.function == "floordiv" and isinstance(atom.arguments[1], int):
            yield rest * atom.arguments[1] + factor * atom.arguments[0]
        elif factor < 0 and atom.function == "mod" and isinstance(atom.arguments[1], int):
            yield rest + factor * (abs(atom.arguments[1]) - 1)
        elif (factor < 0, atom.function) in {(True, "min"), (False, "max")}:
            yield from (rest + factor * argument for argument in atom.arguments)


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """Return ``dim`` with symbols replaced; one inside an opaque operation stays."""
    if not isinstance(dim, Sym) or dim.symbols().isdisjoint(values):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        atoms = [
            values.get(atom, symbol(atom)) if isinstance(atom, str) else Sym((((atom,), 1),))
            for atom in monomial
        ]
        total = total + factor * product(atoms)
    return total
