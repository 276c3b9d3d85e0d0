"""In which types a graph computes its products."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import onnx_graphsurgeon as gs
from onnx import FunctionProto

from opfuse.graph import edit
from opfuse.graph.facts import Facts
from opfuse.precision import rules
from opfuse.precision.types import FLOATS, NAMES


def is_product(node: gs.Node, functions: Mapping[str, FunctionProto]) -> bool:
    """Whether a node is a matrix product, a convolution, or an attention, or holds one.

    Args:
        node: Of a fused graph.
        functions: The definitions of the fused ops, by name.
    """
    function = functions.get(node.op)
    if function is not None and not edit.is_standard(node):
        return any(inner.op_type in rules.PRODUCTS for inner in function.node)
    return node.op in rules.PRODUCTS


def products(
    graph: gs.Graph, facts: Facts, functions: Mapping[str, FunctionProto]
) -> dict[str, int]:
    """Count the products by the type of what they give; types that are not known left out."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        element = facts.dtype(node.outputs[0]) if node.outputs else None
        if element is not None and is_product(node, functions):
            found[NAMES.get(element, str(element))] += 1
    return dict(sorted(found.items()))


def delicate(graph: gs.Graph, facts: Facts) -> dict[str, dict[str, int]]:
    """Count by type the operators that overflow or lose digits in half precision, by their name.

    Fused ones are left out: they compute in fp32 inside, whatever they take.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph.nodes:
        element = facts.dtype(node.outputs[0]) if node.outputs else None
        if (
            element is not None
            and element in NAMES
            and edit.is_standard(node)
            and node.op in rules.DELICATE
        ):
            found[node.op][NAMES[element]] += 1
    return {op: dict(sorted(counts.items())) for op, counts in sorted(found.items())}


def casts(graph: gs.Graph, facts: Facts) -> int:
    """Count the Casts from one floating-point type to another."""
    return sum(
        node.op == "Cast"
        and edit.is_standard(node)
        and {facts.dtype(node.inputs[0]), facts.dtype(node.outputs[0])} <= FLOATS
        for node in graph.nodes
    )


def epsilons(graph: gs.Graph) -> dict[str, int]:
    """Count the nodes by their epsilon: one of 1e-12 that grows moves no output of usual size."""
    found = Counter(f"{float(node.attrs['epsilon']):.4g}" for node in graph.nodes if _has(node))
    return dict(sorted(found.items()))


def _has(node: gs.Node) -> bool:
    return isinstance(node.attrs.get("epsilon"), float)
