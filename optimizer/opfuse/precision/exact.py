"""Angles, positions, and index arithmetic: what leads up to an operator that needs every digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.dims import Dim
from opfuse.graph.facts import Facts
from opfuse.precision.rules import ELEMENTWISE, EXACT, MOVES
from opfuse.precision.signature import Signature
from opfuse.precision.types import FLOATS

_PASSED = ELEMENTWISE | MOVES | EXACT | {"Exp", "Log", "Pow"}
_MEANS = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})
_STEPS = 4  # between a mean and what is made of it


def exact(graph: gs.Graph, signatures: Mapping[int, Signature], facts: Facts) -> dict[int, str]:
    """Return by node id why it computes something that must stay exact.

    A product of real length ends the walk: behind it stands the network, not an angle. One without
    a sum is passed: torch writes positions times frequencies as a MatMul of a column and a row.
    """
    found: dict[int, str] = {}
    for node in graph.nodes:
        reason = _asks(node, signatures[id(node)])
        if reason:
            _walk(node, reason, found, facts)
        for part in _of_variance(node, facts):
            found.setdefault(id(part), "a small difference of large means")
    return found


def _of_variance(node: gs.Node, facts: Facts) -> list[gs.Node]:
    """The nodes of a variance as the mean of the squares less the square of the mean, as Flax does.

    In bf16 the two of a row whose mean is 3 deviations off are 10 with an error of 0.03 each, and
    their difference is 1. What stands in front may be rounded, for both see the same.
    """
    if node.op != "Sub" or not edit.is_standard(node):
        return []
    squares, squared = (_back(tensor, facts) for tensor in node.inputs)
    inner = _back(squares[-1].inputs[0], facts) if squares and squares[-1].op in _MEANS else []
    sums = squares[-1:] if squares and squares[-1].op == "ReduceSumSquare" else inner[-1:]
    mean = _back(squared[-1].inputs[0], facts) if _is_square(squared[-1:], facts) else []
    if not mean or mean[-1].op not in _MEANS or not _is_square(sums, facts):
        return []
    return [node, *squares, *inner, *squared, *mean]


def _back(tensor: gs.Tensor, facts: Facts) -> list[gs.Node]:
    """What made a tensor, the last of which neither moves nor scales; empty where none is near."""
    found: list[gs.Node] = []
    while len(found) <= _STEPS:
        source = edit.producer(tensor)
        if source is None or not edit.is_standard(source):
            return []
        found.append(source)
        parts = [item for item in source.inputs if facts.value(item) is None]
        if len(parts) != 1 or source.op not in MOVES | {"Div", "Mul"}:
            return found
        tensor = parts[0]
    return []


def _is_square(nodes: Sequence[gs.Node], facts: Facts) -> bool:
    """Whether there is a node, and it squares, or adds up squares."""
    for node in nodes:
        if node.op == "Pow":
            power = facts.value(node.inputs[1])
            return power is not None and all(item == 2 for item in power.ravel())
        is_product = node.op == "Mul" and node.inputs[0] is node.inputs[1]
        return is_product or node.op == "ReduceSumSquare"
    return False


def _asks(node: gs.Node, signature: Signature) -> str:
    """Say what ``node`` needs every digit of its inputs for; "" where it does not."""
    if not edit.is_standard(node):
        return ""
    if node.op in EXACT and any(element in FLOATS for element in signature.types):
        return "angles" if node.op in ("Sin", "Cos", "Tan") else "counts"
    indexes = node.op == "Cast" and signature.loose and signature.results[0] not in FLOATS
    return "becomes an index" if indexes else ""


def _walk(start: gs.Node, reason: str, found: dict[int, str], facts: Facts) -> None:
    pending = [start]
    while pending:
        node = pending.pop()
        if id(node) in found:
            continue
        found[id(node)] = reason
        if node.op == "Cast" and facts.dtype(node.inputs[0]) not in FLOATS:
            continue
        for tensor in node.inputs:
            source = edit.producer(tensor)
            if source is not None and facts.dtype(tensor) in FLOATS and _passes(source, facts):
                pending.append(source)


def _passes(node: gs.Node, facts: Facts) -> bool:
    if not edit.is_standard(node):
        return False
    if node.op == "MatMul":
        shape = facts.shape(node.inputs[0])
        return shape is not None and shape[-1:] == (1,)
    if node.op == "Einsum":
        return all(size == 1 for size in _summed(node, facts))
    return node.op in _PASSED


def _summed(node: gs.Node, facts: Facts) -> list[Dim | None]:
    """The sizes of the axes that an Einsum sums over; None for one that is not known."""
    text = str(node.attrs.get("equation", "")).replace(" ", "")
    inputs, arrow, output = text.partition("->")
    if not arrow or "." in text:
        return [None]
    sizes: dict[str, Dim | None] = {}
    for letters, tensor in zip(inputs.split(","), node.inputs, strict=False):
        shape = facts.shape(tensor) or (None,) * len(letters)
        sizes.update(zip(letters, shape, strict=False))
    return [size for letter, size in sizes.items() if letter not in output]
