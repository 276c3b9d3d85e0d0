"""Patterns are written as the expression that they match: ``op.Mul(x, op.Sigmoid(x))``.

A pattern is immutable and matching is pure. :meth:`Matcher.find` first asks, memoised over
(pattern, tensor) pairs, whether the structure fits at all; that costs at most one visit for each
pair, whatever the number of commutative operands, and remembers the deepest partial fit, which is
what a near-miss is told from. Only where the structure fits are bindings searched for, and each
branch of that search has its own, so that a failed one leaks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import TypeAlias

import onnx_graphsurgeon as gs

from opfuse.graph.edit import producer

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Max", "Min", "Equal"})
_SEARCH_LIMIT = 4096  # branches of one search; the largest pattern here needs fewer than 200
OPFUSE = "opfuse"


@dataclass(frozen=True, eq=False)
class Var:
    """Any tensor; the same name binds the same tensor everywhere in a match."""

    name: str


@dataclass(frozen=True, eq=False)
class Const(Var):
    """A tensor whose value is known, not computed by the graph."""


@dataclass(frozen=True, eq=False)
class Op:
    """The first output of a node of one of ``types``.

    ``inputs`` may end in ``...``: any further inputs are accepted. ``attrs`` maps an attribute to
    the value that it must have; an absent attribute counts as None.
    """

    types: tuple[str, ...]
    inputs: tuple[Pattern | EllipsisType, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    domain: str = ""

    def __getitem__(self, index: int) -> Out:
        """Return the pattern of output ``index`` of the same node."""
        return Out(self, index)


@dataclass(frozen=True, eq=False)
class Out:
    """Output ``index`` of a node with several outputs."""

    node: Op
    index: int


@dataclass(frozen=True, eq=False)
class OneOf:
    """The first alternative that leads to a whole match; its label is bound to ``name``.

    Attributes:
        whole: It stands for one tensor, wherever it is written in a pattern.
    """

    name: str
    options: tuple[tuple[str, Pattern], ...]
    whole: bool = True


Pattern: TypeAlias = Var | Op | Out | OneOf


class _Ops:
    """``op.Add(x, y)`` is the pattern of an Add node; ``op("Mul|Div", x, y)`` of either."""

    def __init__(self, domain: str = "") -> None:
        self._domain = domain

    def __call__(self, types: str, *inputs: Pattern | EllipsisType, **attrs: object) -> Op:
        return Op(tuple(types.split("|")), inputs, attrs, self._domain)

    def __getattr__(self, types: str) -> Callable[..., Op]:
        return lambda *inputs, **attrs: self(types, *inputs, **attrs)


op = _Ops()
fused = _Ops(OPFUSE)


def any_of(*options: Pattern) -> OneOf:
    """Match the first of ``options`` that leads to a whole match."""
    return OneOf("", tuple(("", option) for option in options))


def one_of(name: str, **options: Pattern) -> OneOf:
    """Match the first of ``options`` and bind its label to ``name``."""
    return OneOf(name, tuple(options.items()))


def maybe_cast(x: Pattern) -> OneOf:
    """Match ``x``, with or without a Cast behind it, here so and there so."""
    return OneOf("", (("", op.Cast(x)), ("", x)), whole=False)


Bindings = Mapping[object, object]


@dataclass(frozen=True)
class Fit:
    """How well the structure below one tensor fits one pattern.

    ``size`` counts the pattern's operators that were found; ``blocker`` and ``reason`` say where
    the first difference stands on the way that went deepest.
    """

    ok: bool
    size: int
    blocker: gs.Tensor | None = None
    reason: str = ""


class Matcher:
    """Finds one pattern at given tensors of a graph that does not change while it is used."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._fits: dict[tuple[int, int], Fit] = {}
        self._alive: list[gs.Tensor] = []  # ids in _fits stay unique while their tensors live
        self._budget = 0

    def find(self, tensor: gs.Tensor) -> tuple[Bindings | None, Fit]:
        """Return the bindings of the match that ends in ``tensor``, or None, and how it fits."""
        fit = self._fit(self._pattern, tensor)
        if not fit.ok:
            return None, fit
        bindings = next(self.every(tensor), None)
        if bindings is None:
            return None, Fit(False, fit.size, tensor, "the operands are not the tensors expected")
        return bindings, fit

    def every(self, tensor: gs.Tensor) -> Iterator[Bindings]:
        """Yield the bindings of each match that ends in ``tensor``, the preferred one first."""
        self._budget = _SEARCH_LIMIT
        yield from self._bind(self._pattern, tensor, {})

    def fitting(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Return the nodes that fit on the way that went deepest."""
        found: dict[int, gs.Node] = {}
        self._collect(self._pattern, tensor, found)
        return list(found.values())

    def _collect(self, pattern: Pattern, tensor: gs.Tensor, found: dict[int, gs.Node]) -> None:
        if isinstance(pattern, OneOf):
            options = [option for _, option in pattern.options]
            best = max(options, key=lambda option: _depth(self._fit(option, tensor)))
            self._collect(best, tensor, found)
            return
        if isinstance(pattern, Var):
            return
        node_pattern, index = (
            (pattern.node, pattern.index) if isinstance(pattern, Out) else (pattern, 0)
        )
        node = producer(tensor)
        if node is None or id(node) in found or _mismatch(node, node_pattern, index, tensor):
            return
        found[id(node)] = node
        pairings = [_pairs(node_pattern, operands) for operands in _orders(node, node_pattern)]
        for part, operand in max(
            pairings, key=lambda pairs: _depth(_all(self._fit(*pair) for pair in pairs))
        ):
            self._collect(part, operand, found)

    def forget(self) -> None:
        """Drop what is remembered about a graph that has changed."""
        self._fits.clear()
        self._alive.clear()

    # -- structure ------------------------------------------------------------------------------

    def _fit(self, pattern: Pattern, tensor: gs.Tensor) -> Fit:
        key = (id(pattern), id(tensor))
        known = self._fits.get(key)
        if known is None:
            known = self._fit_new(pattern, tensor)
            self._fits[key] = known
            self._alive.append(tensor)
        return known

    def _fit_new(self, pattern: Pattern, tensor: gs.Tensor) -> Fit:
        if isinstance(pattern, Var):
            if isinstance(pattern, Const) and not isinstance(tensor, gs.Constant):
                return Fit(False, 0, tensor, "is computed, want a constant")
            return Fit(not tensor.is_empty(), 0, tensor, "is absent")
        if isinstance(pattern, OneOf):
            return _best(self._fit(option, tensor) for _, option in pattern.options)
        node_pattern, index = (
            (pattern.node, pattern.index) if isinstance(pattern, Out) else (pattern, 0)
        )
        return self._fit_node(node_pattern, index, tensor)

    def _fit_node(self, pattern: Op, index: int, tensor: gs.Tensor) -> Fit:
        node = producer(tensor)
        why = _mismatch(node, pattern, index, tensor)
        if node is None or why:
            return Fit(False, 0, tensor, why)
        return _best(
            _all(self._fit(*pair) for pair in _pairs(pattern, operands))
            for operands in _orders(node, pattern)
        )

    # -- bindings -------------------------------------------------------------------------------

    def _bind(self, pattern: Pattern, tensor: gs.Tensor, env: Bindings) -> Iterator[Bindings]:
        self._budget -= 1
        if self._budget < 0 or not self._fit(pattern, tensor).ok:
            return
        if isinstance(pattern, Var):
            if env.get(pattern.name, tensor) is tensor:
                yield {**env, pattern.name: tensor}
        elif isinstance(pattern, OneOf):
            yield from self._bind_one(pattern, tensor, env)
        elif isinstance(pattern, Out):
            yield from self._bind_node(pattern.node, producer(tensor), env)
        else:
            yield from self._bind_node(pattern, producer(tensor), env)

    def _bind_one(self, pattern: OneOf, tensor: gs.Tensor, env: Bindings) -> Iterator[Bindings]:
        if pattern in env:
            if env[pattern] is tensor:
                yield env
            return
        known = {**env, pattern: tensor} if pattern.whole else env
        for label, option in pattern.options:
            named = {**known, pattern.name: label} if pattern.name else known
            yield from self._bind(option, tensor, named)

    def _bind_node(self, pattern: Op, node: gs.Node | None, env: Bindings) -> Iterator[Bindings]:
        if node is None:
            return
        if pattern in env:  # a shared sub-expression: the node that was bound before
            if env[pattern] is node:
                yield env
            return
        for operands in _orders(node, pattern):
            yield from self._bind_all(pattern.inputs, operands, {**env, pattern: node})

    def _bind_all(
        self,
        patterns: tuple[Pattern | EllipsisType, ...],
        tensors: tuple[gs.Tensor, ...],
        env: Bindings,
    ) -> Iterator[Bindings]:
        if not patterns or isinstance(patterns[0], EllipsisType):
            yield env
            return
        for extended in self._bind(patterns[0], tensors[0], env):
            yield from self._bind_all(patterns[1:], tensors[1:], extended)


def _mismatch(node: gs.Node | None, pattern: Op, index: int, tensor: gs.Tensor) -> str:
    """Say why ``node`` is not an instance of ``pattern``; empty where it is one."""
    wanted = " or ".join(pattern.types)
    if node is None:
        kind = "a constant" if isinstance(tensor, gs.Constant) else "a graph input"
        return f"is {kind}, want {wanted}"
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    if node.op not in pattern.types or domain != pattern.domain:
        return f"is {node.op}, want {wanted}"
    if index >= len(node.outputs) or node.outputs[index] is not tensor:
        return f"is another output of {node.op} than number {index}"
    arity = len(node.inputs)
    open_ended = bool(pattern.inputs) and isinstance(pattern.inputs[-1], EllipsisType)
    needed = len(pattern.inputs) - open_ended
    if arity < needed or (arity > needed and not open_ended):
        return f"{node.op} has {arity} inputs, want {needed}"
    for name, value in pattern.attrs.items():
        if node.attrs.get(name) != value:
            return f"{node.op} has {name}={node.attrs.get(name)}, want {value}"
    return ""


def _orders(node: gs.Node, pattern: Op) -> tuple[tuple[gs.Tensor, ...], ...]:
    operands = tuple(node.inputs)
    if node.op in COMMUTATIVE and len(operands) == 2 and operands[0] is not operands[1]:
        return operands, operands[::-1]
    return (operands,)


def _pairs(pattern: Op, operands: Sequence[gs.Tensor]) -> list[tuple[Pattern, gs.Tensor]]:
    return [
        (part, operand)
        for part, operand in zip(pattern.inputs, operands, strict=False)
        if not isinstance(part, EllipsisType)
    ]


def _depth(fit: Fit) -> tuple[bool, int]:
    return fit.ok, fit.size


def _best(fits: Iterator[Fit]) -> Fit:
    best: Fit | None = None
    for fit in fits:
        if fit.ok:
            return fit
        if best is None or fit.size > best.size:
            best = fit
    return best or Fit(True, 0)


def _all(fits: Iterator[Fit]) -> Fit:
    size, failed = 1, None
    for fit in fits:
        size += fit.size
        if not fit.ok and (failed is None or fit.size > failed.size):
            failed = fit
    if failed is None:
        return Fit(True, size)
    return Fit(False, size, failed.blocker, failed.reason)
