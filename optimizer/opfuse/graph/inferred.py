"""What ONNX's own shape inference says of a model's values, without a look at its weights."""

from __future__ import annotations

import onnx
from onnx import ModelProto, helper


def value_types(model: ModelProto) -> dict[str, int]:
    """Return the element type of every value of the graph that is known, by name."""
    bare = ModelProto()
    bare.CopyFrom(model)
    weights = {tensor.name: tensor.data_type for tensor in bare.graph.initializer}
    known = {info.name for info in bare.graph.input}
    for tensor in bare.graph.initializer:
        if tensor.name not in known:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(info)
    del bare.graph.initializer[:]
    graph = onnx.shape_inference.infer_shapes(bare).graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    return weights | {info.name: info.type.tensor_type.elem_type for info in infos}
