"""Sparse constants are made dense when a model is loaded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from opfuse.errors import InputError
from opfuse.graph.sparse import make_dense
from opfuse.stages.load import load

FLAT = ([0, 9, 30], [3])
PAIRS = ([0, 0, 2, 1, 7, 2], [3, 2])
WANT = np.zeros((8, 4), np.float32)
WANT.flat[[0, 9, 30]] = 1, 2, 3


def sparse(places, dims=(8, 4)):
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    numbers, shape = places
    return helper.make_sparse_tensor(
        values, helper.make_tensor("places", TensorProto.INT64, shape, numbers), dims
    )


def layer(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4])
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return helper.make_graph([*nodes, product], "g", [x], [y])


@pytest.mark.parametrize("places", [FLAT, PAIRS], ids=["flat", "pairs"])
def test_an_initializer(places, tmp_path):
    graph = layer()
    graph.sparse_initializer.append(sparse(places))
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    source = load(path)
    (weight,) = source.proto.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), WANT)
    assert source.notes == ("1 sparse constants were made dense",)


def test_a_constant_node():
    node = helper.make_node("Constant", [], ["w"], sparse_value=sparse(FLAT))
    graph = layer(node)
    assert make_dense(graph)
    (value,) = graph.node[0].attribute
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(value.t), WANT)


def test_what_stands_in_a_body():
    node = helper.make_node("Constant", [], ["w"], sparse_value=sparse(FLAT))
    branches = {name: layer(node) for name in ("then_branch", "else_branch")}
    graph = helper.make_graph([helper.make_node("If", ["c"], ["z"], **branches)], "g", [], [])
    assert make_dense(graph) == ["2 sparse constants were made dense"]


def test_other_attributes_are_not_touched():
    graph = layer(helper.make_node("Cast", ["x"], ["z"], to=1))
    before = graph.SerializeToString()
    assert make_dense(graph) == []
    assert graph.SerializeToString() == before


@pytest.mark.parametrize("numbers", [[0, 9, 32], [0, -40, 3]])
def test_a_place_outside_is_refused(numbers):
    graph = layer()
    graph.sparse_initializer.append(sparse((numbers, [3])))
    with pytest.raises(InputError, match="cannot be made dense"):
        make_dense(graph)
