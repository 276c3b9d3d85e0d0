"""Sparse constants made dense: gs and TensorRT know no others."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import GraphProto, SparseTensorProto, TensorProto, numpy_helper

from opfuse.errors import InputError
from opfuse.graph.protos import is_external

_MAX_ELEMENTS = 2**28  # of a dense one: as many fp32 values have 1 GiB


def make_dense(graph: GraphProto) -> list[str]:
    """Replace every sparse constant of ``graph`` and of the bodies in it.

    Returns:
        A note where there were any.

    Raises:
        InputError: A tensor is too large, or lies in another file.
    """
    count = _make_dense(graph)
    return [f"{count} sparse constants were made dense"] if count else []


def _make_dense(graph: GraphProto) -> int:
    made = [_dense(item) for item in graph.sparse_initializer]
    graph.initializer.extend(made)
    graph.ClearField("sparse_initializer")
    count = len(made)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                tensor = _dense(attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
                count += 1
            own = [attribute.g] if attribute.HasField("g") else []
            for body in (*own, *attribute.graphs):
                count += _make_dense(body)
    return count


def _dense(sparse: SparseTensorProto) -> TensorProto:
    name, dims = sparse.values.name, list(sparse.dims)
    here = not is_external(sparse.values) and not is_external(sparse.indices)
    try:
        if here and prod(dims) <= _MAX_ELEMENTS:
            return _filled(sparse, dims, name)
    except (ValueError, IndexError):  # its places are none of the tensor
        pass
    raise InputError(
        f"sparse tensor {name!r} of shape {dims} cannot be made dense here",
        "store it as a dense tensor",
    )


def _filled(sparse: SparseTensorProto, dims: list[int], name: str) -> TensorProto:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(prod(dims), values.dtype)
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), dims)
    dense[flat] = values
    return numpy_helper.from_array(dense.reshape(dims), name)
