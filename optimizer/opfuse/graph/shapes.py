"""Symbolic shape analysis: one forward pass over a sorted graph."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph import (
    shape_rules_elementwise,
    shape_rules_fused,
    shape_rules_gather,
    shape_rules_layout,
    shape_rules_make,
    shape_rules_nn,
    shape_rules_product,
    shape_rules_reduce,
)
from opfuse.graph.facts import Fact, Facts, Rule, Shape

__all__ = ["Fact", "Facts", "Shape", "analyse", "begin"]

RULES: dict[str, Rule] = {
    **shape_rules_elementwise.RULES,
    **shape_rules_layout.RULES,
    **shape_rules_make.RULES,
    **shape_rules_gather.RULES,
    **shape_rules_reduce.RULES,
    **shape_rules_product.RULES,
    **shape_rules_nn.RULES,
    **shape_rules_fused.RULES,
}


def analyse(graph: gs.Graph) -> Facts:
    """The shapes, dtypes, and small values of all tensors of ``graph``, which is not changed.

    Nodes have to be in topological order. An odd node or an operator that has no rule costs only
    its own outputs their facts: they fall back to what the model itself states of them.
    """
    facts = begin(graph)
    for node in graph.nodes:
        facts.infer(node)
    return facts


def begin(graph: gs.Graph) -> Facts:
    """Facts of the inputs of ``graph`` alone, for a pass that infers its nodes as it goes."""
    facts = Facts(RULES)
    for tensor in graph.inputs:
        facts.declare(tensor)
    return facts
