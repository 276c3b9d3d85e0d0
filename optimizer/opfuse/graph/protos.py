"""Walks over ONNX protobuf messages: subgraphs, tensors, and the bytes that a tensor takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

_BITS = {
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("INT32", "UINT32", "FLOAT"), 32),
    **dict.fromkeys(("INT64", "UINT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
BITS = {TensorProto.DataType.Value(k): v for k, v in _BITS.items() if hasattr(TensorProto, k)}
"""Bits of one element, by ``TensorProto.DataType``; strings have no fixed size and are absent."""


def byte_size(tensor: TensorProto) -> int | None:
    """Bytes of the raw data that the type and the dimensions ask for; None for strings."""
    bits = BITS.get(tensor.data_type)
    return None if bits is None else (prod(tensor.dims) * bits + 7) // 8


def value_counts(tensor: TensorProto) -> tuple[int, int]:
    """How many entries of its typed fields a tensor of this shape has, and how many there are."""
    size = prod(tensor.dims)
    bits = BITS.get(tensor.data_type, 8)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        size *= 2
    floats = len(tensor.float_data) + len(tensor.double_data)
    integers = len(tensor.int32_data) + len(tensor.int64_data) + len(tensor.uint64_data)
    there = floats + integers + len(tensor.string_data)
    return (size * bits + 7) // 8 if bits < 8 else size, there


def is_external(tensor: TensorProto) -> bool:
    """Whether the values lie in a file beside the model."""
    return tensor.data_location == TensorProto.EXTERNAL


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of If, Loop, Scan, and whatever else carries graphs as attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and, after each, those of its subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def every_node(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the graph and then of the local functions, those of subgraphs included."""
    yield from all_nodes(model.graph.node)
    for function in model.functions:
        yield from all_nodes(function.node)


def every_graph(model: ModelProto) -> Iterator[GraphProto]:
    """The graph, and all graphs in it and in local functions."""
    yield model.graph
    for node in every_node(model):
        yield from subgraphs(node)


def opset_of(owner: ModelProto | FunctionProto, missing: int = 0) -> int:
    """The version of the default ONNX domain that it is written for, ``missing`` if for none."""
    return next((entry.version for entry in owner.opset_import if not entry.domain), missing)


def unsized(name: str, element: int, shape: Sequence[object] | None) -> ValueInfoProto:
    """An input of this type, of the rank of ``shape``, and of any sizes.

    Without the rank operators are not written out, and onnxruntime infers some sizes wrongly.
    """
    return helper.make_tensor_value_info(
        name, element, None if shape is None else [None] * len(shape)
    )


def reads(nodes: Iterable[NodeProto]) -> set[str]:
    """The values that nodes read, those that their subgraphs capture included."""
    names: set[str] = set()
    for node in nodes:
        names.update(name for name in node.input if name)
        for graph in subgraphs(node):
            names |= _captured(graph)
    return names


def _captured(graph: GraphProto) -> set[str]:
    own = {info.name for info in graph.input} | {t.name for t in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    return (reads(graph.node) | {info.name for info in graph.output}) - own


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def label(node: NodeProto) -> str:
    """How messages name a node: its name and type, or its first output where it has no name."""
    name = node.name or next((f"-> {output}" for output in node.output if output), "unnamed")
    return f"{name!r} ({node.op_type})"


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            kind = attribute.type
            if kind == AttributeProto.TENSOR:
                yield attribute.t
            elif kind == AttributeProto.TENSORS:
                yield from attribute.tensors
            elif kind == AttributeProto.SPARSE_TENSOR:
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            elif kind == AttributeProto.GRAPH:
                yield from _graph_tensors(attribute.g)
            elif kind == AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _graph_tensors(graph)


def type_name(data_type: int) -> str:
    """The ONNX spelling of an element type ("FLOAT16"); the number where it is unknown."""
    known = TensorProto.DataType.values()
    return TensorProto.DataType.Name(data_type) if data_type in known else str(data_type)
