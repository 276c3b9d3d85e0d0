"""The gate and up projections of a gated unit become one matrix product."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.linear import linear_of, merge
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

KIND = "gate_up_merge"


class _GateUpMerge:
    """Merges the two layers that feed a GatedAct, which then reads one packed tensor."""

    kind = KIND

    def run(self, work: Work) -> None:
        """Merge wherever gate and up are linear layers of one input."""
        for node in work.nodes(("GatedAct",), "opfuse"):
            if len(node.inputs) == 2 and not _is_one_tensor(node):
                try:
                    self._apply(work, node)
                except Miss as miss:
                    work.miss(KIND, node, miss, _layers(node))

    def _apply(self, work: Work, node: gs.Node) -> None:
        layers = [layer for layer in map(linear_of, node.inputs) if layer is not None]
        if len(layers) != 2 or layers[0].x is not layers[1].x:
            raise Miss("gate and up are not linear layers of one tensor", node)
        if layers[0].output is layers[1].output:
            raise Miss("gate and up are one linear layer", node)
        made, out = merge(work, layers, layers[0].output)
        made.append(NewNode("GatedAct", (out,), (node.outputs[0],), _own(node)))
        work.replace(KIND, node, [n for layer in layers for n in layer.nodes] + [node], made)


def _is_one_tensor(node: gs.Node) -> bool:
    """Tell whether gate and up are parts of one tensor: there are no two layers then."""
    parts = [producer(tensor) for tensor in node.inputs]
    taken = [part.inputs[0] for part in parts if part is not None and part.op in ("Split", "Slice")]
    return len(taken) == 2 and taken[0] is taken[1]


def _layers(node: gs.Node) -> list[gs.Node]:
    layers = [layer for layer in map(linear_of, node.inputs) if layer is not None]
    return [inner for layer in layers for inner in layer.nodes]


def _own(node: gs.Node) -> dict[str, object]:
    return {"activation": node.attrs["activation"]}


FUSION = _GateUpMerge()
