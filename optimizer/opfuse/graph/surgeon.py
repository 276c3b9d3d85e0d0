"""ONNX GraphSurgeon without its remarks, which it prints to stdout, where reports go.

A graph that is read here has the domain in the name of every operator that is neither ONNX's, nor
our own, nor onnxruntime's where we know it: whoever asks for a "Softmax" is never told of another.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from opfuse.graph import edit, microsoft
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.protos import BITS, all_nodes
from opfuse.graph.values import elem_type


def read(model: ModelProto) -> gs.Graph:
    """The graph of a model. A type that NumPy does not have, such as BFLOAT16, is kept as it is."""
    with G_LOGGER.suppress():
        graph = gs.import_onnx(model)
    for node in edit.every_node(graph):
        if _is_foreign(node):
            node.op = f"{node.domain}::{node.op}"
    return graph


def written(graph: gs.Graph) -> ModelProto:
    """The model of a graph."""
    for each in (
        graph,
        *(body for node in edit.every_node(graph) for body in edit.subgraphs(node)),
    ):
        for tensor in each.tensors().values():
            _pack(tensor)
    with G_LOGGER.suppress():
        model: ModelProto = gs.export_onnx(graph, do_type_check=False)
    for node in all_nodes(model.graph.node):
        if node.domain:
            node.op_type = node.op_type.removeprefix(f"{node.domain}::")
    return model


def _pack(tensor: gs.Tensor) -> None:
    """Lay values of less than a byte side by side: gs writes each as a byte, and fails."""
    values = getattr(tensor, "_values", None)
    if isinstance(values, np.ndarray) and BITS.get(elem_type(values.dtype) or 0, 8) < 8:
        tensor.values = LazyValues(numpy_helper.from_array(values, tensor.name))


def _is_foreign(node: gs.Node) -> bool:
    known = edit.is_standard(node) or microsoft.understood(node.domain, node.op)
    return not (known or node.domain == OPFUSE)
