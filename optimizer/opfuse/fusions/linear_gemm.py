"""Linear layers without an activation as GemmAct, for an engine of a library that has it.

The fused graph keeps them as MatMul and Add, which every runtime knows; a plugin pays where
TensorRT's own kernels are slow, such as for few rows.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.linear import Linear, linear_of
from opfuse.graph.fusion import Miss, NewNode, Work
from opfuse.graph.protos import HALVES

__all__ = ["FUSION"]


class _LinearGemm:
    """Takes every product with a constant matrix, and the bias behind it."""

    kind = "GemmAct"

    def run(self, work: Work) -> None:
        """Take what is left of the linear layers."""
        for anchor in work.nodes(("Add", "MatMul")):
            layer = linear_of(anchor.outputs[0]) if work.alive(anchor) else None
            if layer is not None and self._fits(work, layer, anchor):
                self._apply(work, layer, anchor)

    def _fits(self, work: Work, layer: Linear, anchor: gs.Node) -> bool:
        bias = () if layer.bias is None else (layer.bias,)
        types = {work.dtype(tensor) for tensor in (layer.x, layer.weight, *bias)}
        if len(types) != 1 or not types <= HALVES:
            return False
        product = layer.nodes[0]
        if anchor.op == "MatMul":  # with a bias behind it, the sum is the anchor
            readers = [user for user in anchor.outputs[0].outputs if work.alive(user)]
            return not (len(readers) == 1 and self._is_bias_of(readers[0], anchor))
        return len(product.outputs[0].outputs) == 1 and not work.is_output(product.outputs[0])

    def _is_bias_of(self, node: gs.Node, product: gs.Node) -> bool:
        layer = linear_of(node.outputs[0]) if node.op == "Add" else None
        return layer is not None and layer.nodes[0] is product

    def _apply(self, work: Work, layer: Linear, anchor: gs.Node) -> None:
        inputs = (layer.x, layer.weight, *(() if layer.bias is None else (layer.bias,)))
        made = NewNode(self.kind, inputs, (layer.output,), {"activation": "none"})
        try:
            work.replace(self.kind, anchor, list(layer.nodes), [made])
        except Miss as miss:
            work.miss(self.kind, anchor, miss)


FUSION = _LinearGemm()
