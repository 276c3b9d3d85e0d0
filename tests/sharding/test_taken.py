"""A rank's part of a weight: what NumPy takes, whatever the weight is made of and lies in."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.graph.weights import CastValues, ConcatValues, DerivedValues, MatrixValues
from opfuse.sharding import taken
from opfuse.sharding.taken import take

ORDERS = {"a block": [2, 3, 4], "two": [0, 1, 4, 5], "any": [5, 0, 3], "one twice": [1, 1, 2]}


@pytest.fixture(params=["in memory", "in a file"])
def stored(request, tmp_path):
    """Makes a constant of an array, inline or in a file."""

    def make(array: np.ndarray, name: str = "w") -> gs.Constant:
        if request.param == "in memory":
            return gs.Constant(name, array)
        path = tmp_path / f"{name}.data"
        path.write_bytes(bytes(4096) + array.tobytes())
        tensor = onnx.numpy_helper.from_array(array, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": path.name, "offset": 4096, "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        return gs.Constant(name, LazyValues(tensor))

    return make


def values(constant: gs.Constant) -> np.ndarray:
    found = constant._values
    if not isinstance(found, DerivedValues):
        return np.asarray(found)
    assert b"".join(found.blocks()) == found.load().tobytes()
    assert found.nbytes == found.load().nbytes
    return found.load()


@pytest.mark.parametrize("piece", [16, 1 << 24])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_entries_of_any_axis(stored, tmp_path, monkeypatch, axis, order, piece):
    monkeypatch.setattr(taken, "PIECE", piece)
    array = np.arange(216, dtype=np.float16).reshape(6, 6, 6)
    part = take(stored(array), axis, np.array(ORDERS[order]), tmp_path)
    assert np.array_equal(values(part), np.take(array, ORDERS[order], axis))
    assert values(part).dtype == array.dtype


@pytest.mark.parametrize("order", [[0, 1, 4, 6], [5, 6], [6, 0], [0, 0, 5]])
@pytest.mark.parametrize(("axis", "joined"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_merged_weight_gives_what_its_parts_have(stored, tmp_path, axis, joined, order):
    arrays = [np.arange(i, i + 20.0, dtype=np.float32).reshape(4, 5) for i in (0, 100)]
    if joined == 0:
        arrays = [array.T.copy() for array in arrays]
    constants = tuple(stored(array, f"w{number}") for number, array in enumerate(arrays))
    whole = np.concatenate(arrays, joined)
    order = [min(index, whole.shape[axis] - 1) for index in order]
    merged = gs.Constant("merged", ConcatValues(constants, joined, tmp_path))
    part = take(merged, axis, np.array(order), tmp_path)
    assert np.array_equal(values(part), np.take(whole, order, axis))


def test_a_converted_weight_is_cut_before(stored, tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    cast = gs.Constant("half", CastValues(stored(array), TensorProto.FLOAT16, tmp_path))
    part = take(cast, 1, np.array([3, 4]), tmp_path)
    assert np.array_equal(values(part), array[:, 3:5].astype(np.float16))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_turned_weight_gives_what_the_kept_one_has(stored, tmp_path, axis, order):
    array = np.arange(42, dtype=np.float32).reshape(6, 7)
    turned = gs.Constant("t", MatrixValues(stored(array), tmp_path))
    part = take(turned, axis, np.array(ORDERS[order]), tmp_path)
    assert isinstance(part._values, MatrixValues)  # nothing is turned as a whole to be cut
    assert np.array_equal(values(part), np.take(array.T, ORDERS[order], axis))
