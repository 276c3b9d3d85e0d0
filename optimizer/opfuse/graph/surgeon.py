"""ONNX GraphSurgeon without its remarks, which it prints to stdout, where reports go."""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import ModelProto
from onnx_graphsurgeon.logger import G_LOGGER


def read(model: ModelProto) -> gs.Graph:
    """The graph of a model. A type that NumPy does not have, such as BFLOAT16, is kept as it is."""
    with G_LOGGER.suppress():
        return gs.import_onnx(model)


def written(graph: gs.Graph) -> ModelProto:
    """The model of a graph."""
    with G_LOGGER.suppress():
        model: ModelProto = gs.export_onnx(graph, do_type_check=False)
        return model
