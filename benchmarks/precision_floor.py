"""The fewest Casts that a conversion of a model can have: a minimum cut, apart from opfuse's plan.

Where products compute in the low type, and inputs and outputs keep theirs, Casts have to separate
the two. Everything else may compute in either type here, which no conversion that has to be right
may assume: the floor can be below what any of them reaches, and never above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from opfuse.graph.pattern import OPFUSE
from opfuse.precision.cut import INFINITE, Network
from opfuse.precision.rules import PRODUCTS

_FLOAT = TensorProto.FLOAT


def casts(model: ModelProto, low: int) -> int:
    """Casts between fp32 and the low type in the graph; bodies of functions are no part of it."""
    types = _types(model)
    return sum(_between(node, types, low) for node in model.graph.node)


def floor(model: ModelProto, low: int) -> int:
    """The fewest Casts with which the products that are in ``low`` in ``model`` are so."""
    types, wide = _types(model), {_FLOAT, low}
    weights = {tensor.name for tensor in model.graph.initializer}
    sources: dict[str, str] = {}  # what a Cast gives, by what it is made of
    for node in model.graph.node:
        if _between(node, types, low):
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
    nodes = [node for node in model.graph.node if node.output[0] not in sources]
    network = Network()
    in_low, in_fp32 = network.vertex(), network.vertex()
    writers: dict[str, int] = {
        info.name: in_fp32 for info in model.graph.input if types.get(info.name) in wide
    }
    readers: dict[str, set[int]] = defaultdict(set)
    products = PRODUCTS | {
        function.name
        for function in model.functions
        if any(node.op_type in PRODUCTS for node in function.node)
    }
    for node in nodes:
        product = node.op_type in products and types.get(node.output[0]) == low
        vertex = in_low if product else network.vertex()
        writers |= {name: vertex for name in node.output if types.get(name) in wide}
        for name in set(node.input) - weights:
            if types.get(name) in wide and not _takes_either(node, types[name], low, types):
                readers[sources.get(name, name)].add(vertex)
    for info in model.graph.output:
        if types.get(info.name) in wide:
            readers[sources.get(info.name, info.name)].add(in_fp32)
    _tensors(network, writers, readers)
    part = network.cut(in_low, in_fp32)
    return sum(
        any((vertex in part) != (reader in part) for reader in readers[name])
        for name, vertex in writers.items()
    )


def _tensors(network: Network, writers: Mapping[str, int], readers: Mapping[str, set[int]]) -> None:
    """Let each tensor cost one Cast where its ends are in two parts."""
    for name, writer in writers.items():
        up, down = network.vertex(), network.vertex()
        network.edge(writer, up, 1)
        network.edge(down, writer, 1)
        for reader in readers.get(name, ()):
            network.edge(up, reader, INFINITE)
            network.edge(reader, down, INFINITE)


def _takes_either(node: NodeProto, element: int, low: int, types: Mapping[str, int]) -> bool:
    """Whether a node reads a tensor in whatever type: a Cast does, a fused op its fp32 mask."""
    mask = node.domain == OPFUSE and (element, types.get(node.output[0])) == (_FLOAT, low)
    return node.op_type == "Cast" or mask


def _types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph, as far as ONNX infers it."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph  # what another tool wrote with types that contradict each other
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    return types


def _between(node: NodeProto, types: Mapping[str, int], low: int) -> bool:
    """Whether a node casts between fp32 and the low type."""
    both = {_FLOAT, low}
    return node.op_type == "Cast" and types.get(node.input[0]) in both and _target(node) in both


def _target(node: NodeProto) -> int:
    return next(item.i for item in node.attribute if item.name == "to")
