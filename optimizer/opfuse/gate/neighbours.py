"""In what a node's surroundings differ from those of its like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnx import GraphProto, NodeProto

from opfuse.graph.protos import label


class Neighbours:
    """Who makes what a node reads, and who reads what it makes."""

    def __init__(self, graph: GraphProto) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def unlike(self, name: str, others: Sequence[str]) -> tuple[str, str]:
        """The neighbour that sets the node ``name`` apart from ``others``, and in what.

        Both are empty where they have the same neighbours, or one is not in the graph.
        """
        if name not in self._nodes or not others or others[0] not in self._nodes:
            return "", ""
        for side, around in (("its result goes to", self._after), ("it reads", self._before)):
            mine, usual = around(self._nodes[name]), around(self._nodes[others[0]])
            kinds = Counter(node.op_type for node in usual)
            for node in mine:
                if not kinds[node.op_type]:
                    wanted = ", ".join(sorted(kinds)) or "nothing"
                    return node.name, f"{side} {label(node)}, where others have {wanted}"
                kinds[node.op_type] -= 1
        return "", ""

    def _after(self, node: NodeProto) -> list[NodeProto]:
        return [reader for name in node.output for reader in self._readers.get(name, ())]

    def _before(self, node: NodeProto) -> list[NodeProto]:
        return [self._makers[name] for name in node.input if name in self._makers]
