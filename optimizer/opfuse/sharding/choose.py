"""Which products are split by what they sum over, each with the part of the graph in front of it.

Such a product costs one all-reduce of its result. It is worth that where a product in front of it
is split by features: then no rank reads more than its share of either weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from opfuse.graph.edit import producer
from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.rules import Local
from opfuse.sharding.rules.base import is_weight
from opfuse.sharding.rules.products import row
from opfuse.sharding.spread import Spread, Spreader

_ATTENTION = "FlashAttention"
_NEITHER = "by rows: {}; by columns: nothing behind it takes a part"


@dataclass(frozen=True)
class Choice:
    """The products that are split by what they sum over, and all that follows from it.

    Attributes:
        rows: Their ids.
        spread: What is split.
        left: Why each other product with a weight, and each attention, stays whole; by id.
    """

    rows: frozenset[int]
    spread: Spread
    left: Mapping[int, str]


def choose(spreader: Spreader, outputs: Mapping[int, Shard]) -> Choice:
    """Decide for every product of a graph.

    Args:
        spreader: The graph.
        outputs: Parts of graph outputs that are wanted, by the tensor's id.
    """
    nodes = list(spreader.graph.nodes)
    lost: dict[int, str] = {}
    while True:
        rows, left = _wanted(spreader, nodes, lost)
        spread = spreader.spread(rows, nodes, outputs, whole=rows.keys())
        now = {id(n): _NEITHER.format(_why(n, spread)) for n in nodes if _starves(n, rows, spread)}
        if not now:
            return Choice(frozenset(rows), spread, _told(nodes, spread, left))
        lost |= now  # without them others may be worth it: what they would have summed is whole


def _wanted(
    spreader: Spreader, nodes: list[gs.Node], lost: Mapping[int, str]
) -> tuple[dict[int, Local], dict[int, str]]:
    """Each product that is worth it by itself but those in ``lost``, and why the others are not."""
    rows: dict[int, Local] = {}
    columns: set[int] = set()
    left = dict(lost)
    for index, node in enumerate(nodes):
        if id(node) in columns or id(node) in lost or not is_product(node):
            continue
        try:
            how = row(spreader.view(node))
        except Stays as stays:
            left[id(node)] = _NEITHER.format(stays)
            continue
        trial = spreader.spread(
            {id(node): how}, nodes[: index + 1], {}, alone=True, whole=rows.keys()
        )
        own = _columns(trial)
        if own:
            rows[id(node)] = how
            columns |= own
        else:
            left[id(node)] = _NEITHER.format(_why(node, trial))
    return rows, left


def _told(nodes: list[gs.Node], spread: Spread, left: dict[int, str]) -> Mapping[int, str]:
    """Why products and attentions stay whole, once everything that reads a tensor is heard."""
    for node in nodes:
        if id(node) in spread.nodes:
            left.pop(id(node), None)
        elif id(node) in spread.reasons and (is_product(node) or is_attention(node)):
            left[id(node)] = spread.reasons[id(node)]
        elif is_attention(node):
            left.setdefault(id(node), "no product behind it is split")
    return left


def is_product(node: gs.Node) -> bool:
    """Whether a node multiplies with a weight."""
    product = node.op in ("MatMul", "Gemm", "GemmAct") and node.domain in (None, "", "opfuse")
    return product and len(node.inputs) > 1 and is_weight(node.inputs[1])


def is_attention(node: gs.Node) -> bool:
    """Whether a node is a fused attention."""
    return bool(node.op == _ATTENTION and node.domain == "opfuse")


def _columns(spread: Spread) -> set[int]:
    return {key for key, how in spread.nodes.items() if how.column}


def _starves(node: gs.Node, rows: Mapping[int, Local], spread: Spread) -> bool:
    """Whether a node is one of ``rows`` with no product in front that is split by features."""
    return id(node) in rows and not any(
        spread.nodes[id(other)].column for other in _split_before(node, spread)
    )


def _split_before(row: gs.Node, spread: Spread) -> Iterator[gs.Node]:
    """The nodes that work on parts and lead to ``row``."""
    seen: set[int] = set()
    pending = [row.inputs[0]]
    while pending:
        tensor = pending.pop()
        node = producer(tensor)
        if node is None or id(node) in seen or id(tensor) not in spread.tensors:
            continue
        seen.add(id(node))
        yield node
        pending.extend(node.inputs)


def _why(row: gs.Node, spread: Spread) -> str:
    """The reason that stands nearest in front of ``row``."""
    pending, seen = [row.inputs[0]], set[int]()
    while pending:
        node = producer(pending.pop(0))
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in spread.reasons:
            return f"{node.op} in front of it stays whole, since {spread.reasons[id(node)]}"
        if id(node) in spread.nodes:
            pending.extend(node.inputs)
    return "no product in front of it can be split"
