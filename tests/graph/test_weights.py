"""Weights as bytes: what is streamed is what NumPy would concatenate."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.graph import weights
from opfuse.graph.weights import CastValues, ConcatValues, MatrixValues, pieces, raw_blocks
from opfuse.numerics import stored

DTYPES = (np.float32, np.float16, np.int8, np.int64)


def external(tensor: onnx.TensorProto, folder, name: str, offset: int) -> onnx.TensorProto:
    """``tensor`` with its bytes in a file, behind ``offset`` bytes of something else."""
    (folder / name).write_bytes(b"\xab" * offset + tensor.raw_data + b"\xcd" * 7)
    lying = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    lying.data_location = TensorProto.EXTERNAL
    entries = {"location": name, "offset": offset, "length": len(tensor.raw_data)}
    for key, value in entries.items():
        lying.external_data.add(key=key, value=str(value))
    return lying


def constant(array: np.ndarray, folder=None, offset: int = 0) -> gs.Constant:
    name = f"w{next(_numbers)}"
    tensor = numpy_helper.from_array(array, name)
    if folder is None:
        return gs.Constant(name, array)
    return gs.Constant(name, LazyValues(external(tensor, folder, f"{name}.bin", offset)))


_numbers = itertools.count()


def joined(arrays, axis, places, folder) -> ConcatValues:
    parts = [
        constant(array, folder if place == "file" else None, offset=3 + index)
        for index, (array, place) in enumerate(zip(arrays, places, strict=True))
    ]
    return ConcatValues(tuple(parts), axis, folder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [("file",) * 3, ("memory",) * 3, ("file", "memory", "file")])
@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (0, [(3,), (1,), (5,)]),
        (0, [(3, 7), (1, 7), (2, 7)]),
        (1, [(3, 7), (3, 1), (3, 4)]),
        (1, [(1, 13), (1, 5), (1, 1)]),
        (2, [(2, 3, 1), (2, 3, 5), (2, 3, 2)]),
        (1, [(2, 3, 5), (2, 1, 5), (2, 2, 5)]),
    ],
)
def test_blocks_are_the_concatenation(tmp_path, dtype, places, axis, shapes):
    random = np.random.default_rng(0)
    arrays = [(random.standard_normal(shape) * 50).astype(dtype) for shape in shapes]
    values = joined(arrays, axis, places, tmp_path)
    want = np.concatenate(arrays, axis)
    assert tuple(values.shape) == want.shape
    assert values.nbytes == want.nbytes
    assert b"".join(values.blocks()) == want.tobytes()
    np.testing.assert_array_equal(values.load(), want)


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_are_at_most_as_large_as_allowed(tmp_path, monkeypatch, piece, axis):
    monkeypatch.setattr(weights, "PIECE", piece)
    shapes = [(33, 5), (33, 3)] if axis else [(33, 5), (9, 5)]
    arrays = [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes]
    blocks = list(joined(arrays, axis, ("file", "memory"), tmp_path).blocks())
    want = np.concatenate(arrays, axis)
    row = want.nbytes // want.shape[0] if axis else 0
    assert b"".join(blocks) == want.tobytes()
    assert max(map(len, blocks)) <= max(piece, row)


def test_a_concatenation_of_concatenations(tmp_path):
    arrays = [np.arange(size * 3, dtype=np.float32).reshape(3, size) for size in (2, 5, 4)]
    inner = gs.Constant("inner", joined(arrays[:2], 1, ("file", "memory"), tmp_path))
    outer = ConcatValues((inner, constant(arrays[2])), 1, tmp_path)
    want = np.concatenate(arrays, 1)
    assert b"".join(outer.blocks()) == want.tobytes()
    np.testing.assert_array_equal(outer.load(), want)


def test_bfloat16_parts_keep_their_bits(tmp_path):
    def bfloat16(values) -> gs.Constant:
        tensor = onnx.helper.make_tensor("b", TensorProto.BFLOAT16, [2, len(values) // 2], values)
        raw = onnx.numpy_helper.to_array(tensor).tobytes()
        tensor = onnx.TensorProto(data_type=TensorProto.BFLOAT16, dims=tensor.dims, raw_data=raw)
        return gs.Constant(f"b{next(_numbers)}", LazyValues(tensor))

    values = ConcatValues((bfloat16([1, 2, 3, 4]), bfloat16([5, 6])), 1, tmp_path)
    bits = np.frombuffer(b"".join(values.blocks()), np.uint16)
    want = np.array([1, 2, 5, 3, 4, 6], np.float32).view(np.uint32) >> 16
    np.testing.assert_array_equal(bits, want)


def test_nothing_along_the_axis(tmp_path):
    arrays = [np.zeros((3, 0), np.float32), np.ones((3, 2), np.float32)]
    values = joined(arrays, 1, ("memory", "file"), tmp_path)
    assert b"".join(values.blocks()) == np.concatenate(arrays, 1).tobytes()


@pytest.mark.parametrize("array", [np.arange(37, dtype=np.float32), np.zeros((), np.int64)])
@pytest.mark.parametrize("piece", [5, 16 << 20])
def test_raw_blocks_of_every_place(tmp_path, monkeypatch, array, piece):
    monkeypatch.setattr(weights, "PIECE", piece)
    raw = numpy_helper.from_array(array, "w")
    typed = onnx.helper.make_tensor("w", raw.data_type, array.shape, array.ravel())
    for tensor in (raw, typed, external(raw, tmp_path, "w.bin", 11)):
        assert b"".join(raw_blocks(tensor, tmp_path)) == array.tobytes()


def test_a_file_without_a_stated_length_is_read_to_the_size_of_the_tensor(tmp_path):
    array = np.arange(6, dtype=np.float16)
    tensor = external(numpy_helper.from_array(array, "w"), tmp_path, "w.bin", 0)
    kept = [entry for entry in tensor.external_data if entry.key != "length"]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    assert b"".join(raw_blocks(tensor, tmp_path)) == array.tobytes()


def test_an_empty_tensor(tmp_path):
    array = np.zeros((0, 4), np.float32)
    tensor = external(numpy_helper.from_array(array, "w"), tmp_path, "w.bin", 0)
    assert b"".join(raw_blocks(tensor, tmp_path)) == b""


@pytest.mark.parametrize("place", ["inline", "in a file", "joined"])
@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_cast_weight_is_streamed_as_it_is_loaded(place, element, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 40)  # several pieces, the last one short
    array = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    source = constant(array, tmp_path if place == "in a file" else None, 3)
    if place == "joined":
        halves = [constant(part, tmp_path, 1) for part in (array[:, :3], array[:, 3:])]
        source = gs.Constant("joined", ConcatValues(tuple(halves), 1, tmp_path))
    cast = CastValues(source, element, tmp_path)
    want = array.astype(onnx.helper.tensor_dtype_to_np_dtype(element))
    assert (cast.load() == want).all()
    assert b"".join(cast.blocks()) == want.tobytes()
    assert (cast.nbytes, list(cast.shape)) == (want.nbytes, [5, 7])
    assert (np.concatenate(list(pieces(source, tmp_path))) == array.ravel()).all()
    assert (weights.load(gs.Constant("c", cast), tmp_path) == want).all()


@pytest.mark.parametrize("place", ["inline", "in a file"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (4, 3, 2), (0, 3)])
def test_a_matrix_is_streamed_as_it_is_loaded(place, dtype, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 40)  # several pieces, the last one short
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    source = constant(array, tmp_path if place == "in a file" else None, 3)
    matrix = MatrixValues(source, tmp_path)
    want = array.reshape(shape[0], int(np.prod(shape[1:]))).T
    assert (matrix.load() == want).all()
    assert b"".join(matrix.blocks()) == want.tobytes()
    assert (matrix.nbytes, tuple(matrix.shape)) == (want.nbytes, want.shape)
    kept = stored.of_constant(gs.Constant("m", matrix), tmp_path)
    assert (kept.shape, kept.nbytes) == (want.shape, want.nbytes)
    assert (kept.array() == want).all()
