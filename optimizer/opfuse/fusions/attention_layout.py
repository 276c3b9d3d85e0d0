"""FlashAttention reads and writes [batch, positions, heads, size], as projections lay heads out.

The Transposes around it then go, each of which would copy its tensor. It takes fused nodes, where
the plugin library has the op: in a body the Transposes are there anyway.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

_SWAP = [0, 2, 1, 3]
_HEADS_FIRST, _POSITIONS_FIRST = "BHSD", "BSHD"


class _Layout:
    """Drops what stands around the fused attentions of a graph."""

    kind = "FlashAttention"

    def run(self, work: Work) -> None:
        """Give all nodes one layout, since one op has one definition in a model."""
        nodes = work.nodes((self.kind,), "opfuse")
        free = [node for node in nodes if node.attrs["layout"] == _HEADS_FIRST]
        around = [_transposes(work, node) for node in free]
        everywhere = [all(place) for place in zip(*around, strict=True)]
        if len(free) != len(nodes) or not any(everywhere):
            return
        names = (_POSITIONS_FIRST if turn else _HEADS_FIRST for turn in everywhere)
        layout = ",".join(names)
        for node, transposes in zip(free, around, strict=True):
            try:
                self._apply(work, node, transposes, everywhere, layout)
            except Miss as miss:
                work.miss(self.kind, node, miss)
                self._apply(work, node, [None] * len(everywhere), everywhere, layout)

    def _apply(
        self,
        work: Work,
        node: gs.Node,
        around: list[gs.Node | None],
        turns: list[bool],
        layout: str,
    ) -> None:
        """Replace one node; where an operand turns and no Transpose is taken, one is made."""
        made: list[NewNode] = []
        inputs, taken = [], [node]
        for tensor, transpose, turn in zip(node.inputs[:3], around, turns, strict=False):
            if turn and transpose is not None:
                taken.append(transpose)
                tensor = transpose.inputs[0]
            elif turn:
                source, tensor = tensor, work.fresh(tensor, "positions_first")
                made.append(NewNode("Transpose", (source,), (tensor,), {"perm": _SWAP}, ""))
            inputs.append(tensor)
        result, behind = node.outputs[0], around[-1]
        shared = taken[1:]
        if turns[-1] and behind is not None:
            result = behind.outputs[0]
            taken.append(behind)
        elif turns[-1]:
            turned = work.fresh(result, "positions_first")
            made.append(NewNode("Transpose", (turned,), (result,), {"perm": _SWAP}, ""))
            result = turned
        attrs = {**node.attrs, "layout": layout}
        attrs.pop("plugin_namespace", None)
        new = NewNode(self.kind, (*inputs, *node.inputs[len(inputs) :]), (result,), attrs)
        made.insert(len(made) - int(result is not node.outputs[0] and behind is None), new)
        work.replace(self.kind, taken[-1], taken, made, shared)


def _transposes(work: Work, node: gs.Node) -> list[gs.Node | None]:
    """Return the Transpose in front of q, k, and v, and behind y, where there is one."""
    found = [producer(tensor) for tensor in node.inputs[:3]]
    (result,) = node.outputs
    alone = len(result.outputs) == 1 and not work.is_output(result)
    found.append(result.outputs[0] if alone else None)
    return [other if other is not None and _swaps(other) else None for other in found]


def _swaps(node: gs.Node) -> bool:
    return node.op == "Transpose" and not node.domain and list(node.attrs.get("perm", ())) == _SWAP


FUSION = _Layout()
