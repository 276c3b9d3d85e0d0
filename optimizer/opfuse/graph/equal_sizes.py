"""Sizes that exporters name apart and that have to be equal for the model to run at all.

A key/value cache often has a symbol of its own for each layer, and for keys and values. The inner
sizes of a matrix product and the sides along which tensors are joined admit no broadcasting, so
there two names are one size.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim, Sym, substitute, symbol
from opfuse.graph.facts import Facts


def equal_sizes(graph: gs.Graph, facts: Facts) -> dict[str, Dim]:
    """Return what symbols of the graph's inputs are in terms of the others."""
    names = _input_symbols(graph, facts)
    found: dict[str, Dim] = {}
    for left, right in _pairs(graph, facts):
        solution = _solve(substitute(left, found) - substitute(right, found), names)
        if solution is not None:
            name, value = solution
            found = {known: substitute(dim, {name: value}) for known, dim in found.items()}
            found[name] = value
    return found


def _input_symbols(graph: gs.Graph, facts: Facts) -> frozenset[str]:
    return frozenset(
        name
        for tensor in graph.inputs
        for dim in facts.shape(tensor) or ()
        if isinstance(dim, Sym)
        for name in dim.symbols()
    )


def _pairs(graph: gs.Graph, facts: Facts) -> Iterator[tuple[Dim, Dim]]:
    """Yield sizes that the operators' definitions make equal."""
    for node in graph.nodes:
        shapes = [facts.shape(tensor) for tensor in node.inputs]
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(shapes) or len(known) < 2:
            continue
        if node.op == "MatMul" and all(len(shape) >= 2 for shape in known):
            yield known[0][-1], known[1][-2]
        elif node.op == "Concat" and len({len(shape) for shape in known}) == 1:
            axis = int(node.attrs["axis"]) % max(1, len(known[0]))
            for shape in known[1:]:
                for index, (a, b) in enumerate(zip(known[0], shape, strict=True)):
                    if index != axis:
                        yield a, b


def _solve(difference: Dim, names: frozenset[str]) -> tuple[str, Dim] | None:
    """Return one symbol that ``difference`` = 0 determines, and what it is."""
    if not isinstance(difference, Sym):
        return None
    for monomial, factor in reversed(difference.terms):
        if len(monomial) != 1 or abs(factor) != 1 or monomial[0] not in names:
            continue
        name = str(monomial[0])
        rest = difference - factor * symbol(name)
        if not isinstance(rest, Sym) or name not in rest.symbols():
            return name, -factor * rest
    return None
