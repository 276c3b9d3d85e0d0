"""For each operator: which parts of its inputs a rank needs for a part of its result."""

from __future__ import annotations

from collections.abc import Sequence

from opfuse.graph.edit import subgraphs
from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.rules import attention, elementwise, layout_ops, norms, products
from opfuse.sharding.rules.base import Local, Rule, View

__all__ = ["EACH", "Local", "View", "local"]

# Operators that may make a part of one result and all of another.
EACH = ("Split",)

_DOMAINS = (None, "", "ai.onnx", "opfuse")
RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **layout_ops.RULES,
    **products.RULES,
    **attention.RULES,
    **norms.RULES,
}


def local(view: View, wanted: Sequence[Shard | None]) -> Local:
    """How a node makes the parts of its results that are wanted.

    Args:
        view: The node.
        wanted: A part for each output, None where the whole is needed.

    Raises:
        Stays: It cannot, and has to make the whole.
    """
    node = view.node
    rule = RULES.get(node.op) if node.domain in _DOMAINS else None
    if rule is None:
        raise Stays(f"no rule says what {node.op} does with a part")
    if next(subgraphs(node), None) is not None:
        raise Stays("it holds a graph of its own")
    return rule(view, wanted)
