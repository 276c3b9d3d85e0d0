"""A small BERT, and copies of it with one thing changed in one layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from models import tiny

LAYERS = 3


def bert(dtype: type[np.floating] = np.float32) -> ModelProto:
    return tiny.bert(layers=LAYERS, hidden=32, heads=2, intermediate=64, dtype=dtype).model()


def nodes(model: ModelProto, op: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto:
    return next(item for item in node.attribute if item.name == name)


def plain(model: ModelProto) -> None:
    """Nothing."""


def epsilon(model: ModelProto) -> None:
    """One norm of the second layer with the epsilon of another framework."""
    attribute(nodes(model, "LayerNormalization")[3], "epsilon").f = 1e-5


def smaller_epsilon(model: ModelProto) -> None:
    """One norm of the second layer with ten times its epsilon, which is next to nothing."""
    found = attribute(nodes(model, "LayerNormalization")[3], "epsilon")
    found.f *= 10


def rounding(model: ModelProto) -> None:
    """One product rounded to fp16 and back."""
    product = nodes(model, "MatMul")[5]
    place = list(model.graph.node).index(product) + 1
    (made,) = product.output
    product.output[0] = "wide"
    for source, result, kind in (("narrow", made, 1), ("wide", "narrow", 10)):
        node = helper.make_node("Cast", [source], [result], f"{source}/Cast", to=kind)
        model.graph.node.insert(place, node)


def weight(model: ModelProto) -> None:
    """One of 2048 weights of one product, by one percent."""
    tensor = next(t for t in model.graph.initializer if t.name == "layers.1.up.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 5] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def unseen(model: ModelProto) -> None:
    """One value of the embedding of a token that the seeded inputs do not have."""
    tensor = next(t for t in model.graph.initializer if t.name == "embed.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[-1, 3] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def respelled(model: ModelProto) -> None:
    """Other names, another order, and a weight that is turned as the graph runs."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    product = next(node for node in nodes(model, "MatMul") if node.input[1] in tensors)
    weight = tensors[product.input[1]]
    turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
    weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    model.graph.node.insert(0, helper.make_node("Transpose", [weight.name], ["turned"]))
    product.input[1] = "turned"
    for tensor in tensors.values():
        for node in model.graph.node:
            node.input[:] = [f"own/{n}" if n == tensor.name else n for n in node.input]
        tensor.name = f"own/{tensor.name}"
    model.graph.initializer.sort(key=lambda tensor: tensor.name, reverse=True)


def axis(model: ModelProto) -> None:
    """One softmax along the queries: the pattern fits up to the guard."""
    attribute(nodes(model, "Softmax")[1], "axis").i = 2


def stranger(model: ModelProto) -> None:
    """One node more, which computes nothing new: probabilities are positive."""
    softmax = nodes(model, "Softmax")[1]
    (made,) = softmax.output
    for node in model.graph.node:
        node.input[:] = ["planted" if name == made else name for name in node.input]
    place = list(model.graph.node).index(softmax) + 1
    model.graph.node.insert(place, helper.make_node("Abs", [made], ["planted"], "stranger"))


def erf(model: ModelProto) -> None:
    """One GELU that is none."""
    nodes(model, "Erf")[1].op_type = "Tanh"


def save(path: Path, change=plain, dtype: type[np.floating] = np.float32) -> Path:
    model = bert(dtype)
    change(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
