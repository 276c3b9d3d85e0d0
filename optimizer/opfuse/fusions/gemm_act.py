"""GemmAct: y = activation(x W + b), an epilogue of the matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions import activations
from opfuse.fusions.activation_body import KIND, active, number_kinds
from opfuse.fusions.guards import floating, same_type, text
from opfuse.fusions.linear import linear
from opfuse.graph.definition import Definition, Uses
from opfuse.graph.facts import Facts
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, op
from opfuse.graph.rewriter import numpy_dtype

__all__ = ["DEFINITION", "FUSION"]

gemm = op.Gemm(Var("x"), Var("weight"), ...)
y = activations.any_activation(any_of(linear, gemm))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "weight")
    if found.has(gemm):  # the normal form makes a product and a sum of any other
        raise Miss("is no plain x W + b: it scales, or turns what it reads", found.node(gemm))
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    shape = found.shape("weight")
    if len(shape) != 2:
        raise Miss(f"weight {text(shape)} is not a matrix", found.reader(found["weight"]))
    activation = activations.check(found)
    inputs = [found["x"], found["weight"]]
    if found.has("bias"):
        if found.shape("bias") != (shape[1],):
            reason = f"bias is {text(found.shape('bias'))}, want ({shape[1]})"
            raise Miss(reason, found.reader(found["bias"]))
        inputs.append(found["bias"])
    return Replacement([NewNode("GemmAct", tuple(inputs), (result,), {"activation": activation})])


def _body(uses: Uses) -> str:
    """The epilogue is computed in fp32 and rounded once, as the product's accumulator is kept."""
    bias = "bias_wide = Cast<to: int = 1>(bias)\ntotal = Add(wide, bias_wide)"
    return f"""
        product = MatMul(x, weight)
        wide = Cast<to: int = 1>(product)
        {bias if uses.inputs > 2 else "total = Identity(wide)"}
        {active(uses, "total")}
        y = CastLike(active, x)"""


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts) -> None:
    """Give a bias of zeros to the nodes without one, where others have one."""
    number_kinds(nodes)
    if len({len(node.inputs) for node in nodes}) < 2:
        return
    for node in nodes:
        if len(node.inputs) == 2:
            weight = node.inputs[1]
            values = np.zeros(weight.shape[1], numpy_dtype(facts.dtype(weight)))
            node.inputs.append(gs.Constant(f"{node.name}/no_bias", values))


DEFINITION = Definition(
    "GemmAct", ("x", "weight", "bias"), ("y",), ("activation", KIND), _body, _unify
)
FUSION = Fusion("GemmAct", activations.ANCHORS, y, _build, near=5)
