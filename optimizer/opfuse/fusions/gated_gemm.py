"""GatedGemm: y = activation(x W_gate + b) * (x W_up + c), the gate and its product in one GEMM.

weight is [depth, 2 columns], gate first. It takes together a linear layer and the GatedAct that
alone reads it, and only for an engine of a library that has it: there the tensor between them,
twice as wide as the result, is never written.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.activation_body import active
from opfuse.fusions.linear import linear_of
from opfuse.graph.definition import Definition, Uses, halves
from opfuse.graph.fusion import Miss, NewNode, Work
from opfuse.graph.protos import HALVES

__all__ = ["DEFINITION", "FUSION"]


class _GatedGemm:
    """Looks behind each GatedAct for the linear layer that gives its gate and up side by side."""

    kind = "GatedGemm"

    def run(self, work: Work) -> None:
        """Take together each layer and its gate."""
        for node in work.nodes(("GatedAct",), "opfuse"):
            try:
                self._apply(work, node)
            except Miss as miss:
                work.miss(self.kind, node, miss)

    def _apply(self, work: Work, node: gs.Node) -> None:
        layer = linear_of(node.inputs[0]) if len(node.inputs) == 1 else None
        if layer is None:
            raise Miss("gate and up are not one linear layer", node)
        bias = () if layer.bias is None else (layer.bias,)
        types = {work.dtype(tensor) for tensor in (layer.x, layer.weight, *bias)}
        if len(types) != 1 or not types <= HALVES:
            raise Miss("it is neither all fp16 nor all bf16", layer.nodes[0])
        inputs = (layer.x, layer.weight, *bias)
        for other in work.nodes((self.kind,), "opfuse"):
            if len(other.inputs) != len(inputs):
                raise Miss("another GatedGemm of this model has a bias, or this one has", node)
        attrs = {"activation": node.attrs["activation"]}
        work.claim(self.kind, "activation", str(attrs["activation"]), node)
        made = NewNode(self.kind, inputs, (node.outputs[0],), attrs)
        work.replace(self.kind, node, [*layer.nodes, node], [made])


def _body(uses: Uses) -> str:
    """The epilogue is computed in fp32 and rounded once, as the product's accumulator is kept."""
    bias = "bias_wide = Cast<to: int = 1>(bias)\ntotal = Add(wide, bias_wide)"
    return f"""
        product = MatMul(x, weight)
        wide = Cast<to: int = 1>(product)
        {bias if uses.inputs > 2 else "total = Identity(wide)"}
        {halves(uses.opset, "gate", "up", "total")}
        {active(uses, "gate")}
        gated = Mul(active, up)
        y = CastLike(gated, x)"""


DEFINITION = Definition("GatedGemm", ("x", "weight", "bias"), ("y",), ("activation",), _body)
FUSION = _GatedGemm()
