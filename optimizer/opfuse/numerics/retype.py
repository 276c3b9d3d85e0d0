"""The same model in another floating-point type: the reference that settles rounding disputes."""

from __future__ import annotations

from collections.abc import Collection, MutableSequence

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, numpy_helper

from opfuse.graph.protos import is_external, subgraphs
from opfuse.numerics.compare import Array, is_float, is_half, largest

# Attributes that set the type of a result; ONNX's evaluator knows no stash_type but FLOAT.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
_FAR = 1e150
_FLOAT_VALUES = frozenset({"value_float", "value_floats"})


def retype(model: ModelProto, old: Collection[int], new: int) -> ModelProto:
    """Return a copy that computes in type ``new`` where ``model`` computes in one of ``old``.

    Initializers whose values lie elsewhere are to be fed in the new type.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    _graph(copy.graph, old, new)
    for function in copy.functions:
        _function(function, old, new)
    return copy


def _graph(graph: onnx.GraphProto, old: Collection[int], new: int) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in old:
            info.type.tensor_type.elem_type = new
    for tensor in graph.initializer:
        _tensor(tensor, old, new)
    _nodes(graph.node, old, new)


def _function(function: FunctionProto, old: Collection[int], new: int) -> None:
    del function.value_info[:]
    _nodes(function.node, old, new)


def _nodes(nodes: MutableSequence[NodeProto], old: Collection[int], new: int) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _attribute(attribute, old, new)
        for graph in subgraphs(node):
            _graph(graph, old, new)
    if TensorProto.FLOAT not in old:
        return
    for place in reversed(range(len(nodes))):
        if _is_of_call(nodes[place]):
            nodes.insert(place + 1, _cast_behind(nodes[place], new))


def _is_of_call(node: NodeProto) -> bool:
    """Whether it is a constant in fp32 whose value is an attribute of the call of its function."""
    return any(a.ref_attr_name and a.name in _FLOAT_VALUES for a in node.attribute)


def _cast_behind(node: NodeProto, new: int) -> NodeProto:
    name = node.output[0]
    node.output[0] = f"{name}//fp32"
    return onnx.helper.make_node("Cast", [node.output[0]], [name], to=new)


def _attribute(attribute: AttributeProto, old: Collection[int], new: int) -> None:
    if attribute.ref_attr_name:
        return
    if attribute.type == AttributeProto.TENSOR:
        _tensor(attribute.t, old, new)
    elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in old:
        attribute.i = new
    elif attribute.name in _FLOAT_VALUES and TensorProto.FLOAT in old:
        values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        tensor = numpy_helper.from_array(convert(np.asarray(values, np.float32), new))
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _tensor(tensor: TensorProto, old: Collection[int], new: int) -> None:
    if tensor.data_type not in old or is_external(tensor):
        return
    if tensor.raw_data or tensor.float_data or tensor.int32_data:
        values = convert(numpy_helper.to_array(tensor), new)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    else:
        tensor.data_type = new


def convert(values: Array, element: int) -> Array:
    """Cast to ``element``; the lowest number of a type becomes the lowest of the other.

    Masks hold it, and it must absorb what is added to it in every type. In float64 that of a half
    also stays finite where a fused form multiplies it, for it to be the lowest of fp32.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    if not is_float(values):
        return values.astype(dtype)
    far = _FAR if is_half(values) and dtype == np.float64 else largest(dtype)
    lowest = np.asarray(-far, dtype)
    return np.where(values == -largest(values.dtype), lowest, values.astype(dtype))
