"""Linear layers x W + b: the pattern that rooms share, and the merge of several that share x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.graph.edit import is_standard, producer
from opfuse.graph.pattern import Const, Var, any_of, op
from opfuse.graph.work import Miss, NewNode, Work, label

product = op.MatMul(Var("x"), Const("weight"))
linear = any_of(op.Add(product, Const("bias")), product)


@dataclass(frozen=True)
class Linear:
    """One linear layer: x of shape [..., rows], weight [rows, columns], bias [columns] or none."""

    x: gs.Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    output: gs.Tensor
    nodes: tuple[gs.Node, ...]

    @property
    def columns(self) -> int:
        """How many features it gives."""
        return int(self.weight.shape[1])


def linear_of(tensor: gs.Tensor) -> Linear | None:
    """Return the linear layer that writes ``tensor``, or None."""
    node = producer(tensor)
    if node is None or not is_standard(node):
        return None
    if node.op == "MatMul":
        return _linear(node, None, tensor, (node,))
    if node.op == "Add":
        for inner, bias in (node.inputs, node.inputs[::-1]):
            matmul = producer(inner)
            if isinstance(bias, gs.Constant) and matmul is not None and matmul.op == "MatMul":
                return _linear(matmul, bias, tensor, (matmul, node))
    return None


def _linear(
    matmul: gs.Node, bias: gs.Constant | None, output: gs.Tensor, nodes: tuple[gs.Node, ...]
) -> Linear | None:
    x, weight = matmul.inputs
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
        return None
    if bias is not None and tuple(bias.shape) != (weight.shape[1],):
        return None
    return Linear(x, weight, bias, output, nodes)


def merge(work: Work, layers: Sequence[Linear], like: gs.Tensor) -> tuple[list[NewNode], gs.Tensor]:
    """Return the nodes of one linear layer whose output is the layers' outputs side by side.

    Raises:
        Miss: A weight is read elsewhere too, so that merging would keep a second copy, or the
            types differ.
    """
    readers = [_readers(work, layer) for layer in layers]
    # Layers that share their weights, as ALBERT's do, are merged alike and share the merged one.
    if len({len(others) for others in readers}) > 1:
        layer, others = max(zip(layers, readers, strict=True), key=lambda pair: len(pair[1]))
        raise Miss(f"weight {layer.weight.name} is also read by {label(others[0])}", others[0])
    if len({work.dtype(layer.weight) for layer in layers}) != 1:
        raise Miss("the weights differ in type", layers[0].nodes[0])
    weight = work.joined([layer.weight for layer in layers], like, 1)
    out = work.fresh(like, "merged")
    made = [NewNode("MatMul", (layers[0].x, weight), (out,), {}, "")]
    if any(layer.bias is not None for layer in layers):
        bias = work.joined([_bias(work, layer) for layer in layers], like, 0)
        total = work.fresh(like, "merged_bias")
        made.append(NewNode("Add", (out, bias), (total,), {}, ""))
        out = total
    return made, out


def _readers(work: Work, layer: Linear) -> list[gs.Node]:
    users = {id(user): user for user in layer.weight.outputs if work.alive(user)}
    return [user for key, user in users.items() if key != id(layer.nodes[0])]


def _bias(work: Work, layer: Linear) -> gs.Constant:
    if layer.bias is not None:
        return layer.bias
    dtype = onnx.helper.tensor_dtype_to_np_dtype(work.dtype(layer.weight) or 1)
    return work.constant(layer.weight, "no_bias", np.zeros(layer.columns, dtype))
