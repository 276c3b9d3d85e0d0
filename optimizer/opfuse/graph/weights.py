"""Weights as bytes in pieces, so that a model larger than memory can be rewritten."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import get_itemsize
from onnx_graphsurgeon.ir.tensor import LazyValues

PIECE = 16 << 20  # bytes


class DerivedValues(LazyValues):  # type: ignore[misc]  # gs has no types
    """A weight that is computed from others when it is written, and not kept."""

    # What it is computed from: constants whose values may lie in files of ``base_dir``.
    parts: tuple[gs.Constant, ...]
    base_dir: Path

    def load(self) -> np.ndarray:
        """Return the whole weight as an array."""
        raise AssertionError("every kind of derived weight has its own")

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw little-endian row-major bytes in pieces of at most 16 MiB."""
        raise AssertionError("every kind of derived weight has its own")


class ConcatValues(DerivedValues):
    """A weight that is the concatenation of others along ``axis``, not yet written anywhere.

    Attributes:
        parts: Constants of one dtype whose shapes differ along ``axis`` only.
        axis: A non-negative axis.
        base_dir: The folder that the parts' external files are relative to.
    """

    def __init__(self, parts: tuple[gs.Constant, ...], axis: int, base_dir: Path) -> None:
        self.parts = parts
        self.axis = axis
        self.base_dir = base_dir
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        self.shape = shape
        self.dtype = parts[0].dtype
        self.nbytes = prod(shape) * get_itemsize(self.dtype)
        self.tensor = onnx.TensorProto(
            data_type=onnx_dtype(parts[0]), dims=shape, data_location=onnx.TensorProto.EXTERNAL
        )

    def load(self) -> np.ndarray:
        """Return the whole weight as an array."""
        return np.concatenate([load(part, self.base_dir) for part in self.parts], self.axis)

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw row-major bytes in pieces of at most 16 MiB."""
        rows = prod(self.shape[: self.axis])
        if rows == 1:
            for part in self.parts:
                yield from _pieces(memory(part, self.base_dir))
            return
        views = [memory(part, self.base_dir).reshape(rows, -1) for part in self.parts]
        step = max(1, PIECE // max(1, sum(view.shape[1] for view in views)))
        for start in range(0, rows, step):
            yield np.concatenate([view[start : start + step] for view in views], 1).tobytes()
            if start % (8 * step) == 0:
                for view in views:
                    release(view)


class CastValues(DerivedValues):
    """A weight in another floating-point type than it is kept in, not yet written anywhere.

    Attributes:
        parts: The one constant that it is made of.
        element: The ``onnx.TensorProto`` element type that it is written in.
        base_dir: The folder that external files are relative to.
    """

    def __init__(self, part: gs.Constant, element: int, base_dir: Path) -> None:
        self.parts = (part,)
        self.element = element
        self.base_dir = base_dir
        self.shape = list(part.shape)
        self.dtype = gs_dtype(element)
        self.nbytes = prod(self.shape) * get_itemsize(element)
        self.tensor = onnx.TensorProto(
            data_type=element, dims=self.shape, data_location=onnx.TensorProto.EXTERNAL
        )

    def load(self) -> np.ndarray:
        """Return the whole weight as an array."""
        values = load(self.parts[0], self.base_dir)
        return values.astype(onnx.helper.tensor_dtype_to_np_dtype(self.element))

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw row-major bytes in pieces of at most 16 MiB."""
        target = onnx.helper.tensor_dtype_to_np_dtype(self.element)
        for values in pieces(self.parts[0], self.base_dir):
            yield values.astype(target).tobytes()


class MatrixValues(DerivedValues):
    """A weight of features in rows as the matrix that has them in columns, not yet written.

    That is [columns, rows] of a Gemm's [rows, columns], and [channels * patch, features] of a
    convolution's [features, channels, ...]: what a row of a patch is multiplied with.

    Attributes:
        parts: The one constant that it is made of.
        base_dir: The folder that external files are relative to.
    """

    def __init__(self, part: gs.Constant, base_dir: Path) -> None:
        self.parts = (part,)
        self.base_dir = base_dir
        features, *rest = part.shape
        self.shape = [prod(rest), features]
        self.dtype = part.dtype
        self.nbytes = prod(self.shape) * get_itemsize(self.dtype)
        self.tensor = onnx.TensorProto(
            data_type=onnx_dtype(part), dims=self.shape, data_location=onnx.TensorProto.EXTERNAL
        )

    def load(self) -> np.ndarray:
        """Return the whole weight as an array."""
        values = load(self.parts[0], self.base_dir)
        return np.ascontiguousarray(values.reshape(self.shape[::-1]).T)

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw row-major bytes in pieces of at most 16 MiB."""
        columns, rows = self.shape
        if not self.nbytes:
            return
        size = self.nbytes // (rows * columns)
        view = memory(self.parts[0], self.base_dir).reshape(rows, columns, size)
        step = max(1, PIECE // (rows * size))
        for start in range(0, columns, step):
            yield view[:, start : start + step].transpose(1, 0, 2).tobytes()
            release(view)


def pieces(constant: gs.Constant, base_dir: Path) -> Iterator[np.ndarray]:
    """Yield the values of ``constant`` flat, in pieces of at most 16 MiB."""
    source = onnx.helper.tensor_dtype_to_np_dtype(onnx_dtype(constant))
    values = constant._values
    if isinstance(values, DerivedValues):
        blocks: Iterator[bytes] = values.blocks()
    elif isinstance(values, LazyValues):
        blocks = raw_blocks(values.tensor, base_dir)
    else:
        flat = np.ascontiguousarray(values).reshape(-1)
        step = max(1, PIECE // max(1, flat.itemsize))
        yield from (flat[start : start + step] for start in range(0, flat.size, step))
        return
    for block in blocks:
        yield np.frombuffer(block, source)


def onnx_dtype(tensor: gs.Tensor) -> int:
    """Return the ``onnx.TensorProto`` element type of a tensor whose dtype is known."""
    dtype = tensor.dtype
    if isinstance(dtype, int):
        return dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def gs_dtype(dtype: int) -> object:
    """Return an ``onnx.TensorProto`` element type as onnx-graphsurgeon holds it."""
    if dtype == onnx.TensorProto.BFLOAT16:
        return dtype
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))


def load(constant: gs.Constant, base_dir: Path) -> np.ndarray:
    """Return the values of ``constant``, from its external file where they lie there."""
    values = constant._values
    if isinstance(values, DerivedValues):
        return values.load()
    if isinstance(values, LazyValues):
        return onnx.numpy_helper.to_array(values.tensor, str(base_dir))
    return np.asarray(values)


def memory(constant: gs.Constant, base_dir: Path) -> np.ndarray:
    """Return the raw bytes of ``constant`` as a flat uint8 array, mapped where they are a file."""
    values = constant._values
    if isinstance(values, LazyValues) and is_external(values.tensor):
        if isinstance(values, DerivedValues):
            return np.frombuffer(values.load().tobytes(), np.uint8)
        return map_external(values.tensor, base_dir)
    array = load(constant, base_dir)
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Tell whether the values of ``tensor`` lie in a file of their own."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def map_external(tensor: onnx.TensorProto, base_dir: Path) -> np.ndarray:
    """Return a read-only uint8 map of the external bytes of ``tensor``.

    The location was checked when the model was loaded (stages/load.py).
    """
    entry = {item.key: item.value for item in tensor.external_data}
    offset = int(entry.get("offset", 0))
    length = int(entry.get("length", 0)) or prod(tensor.dims) * get_itemsize_of(tensor)
    if length == 0:
        return np.empty(0, np.uint8)
    path = base_dir / entry["location"]
    return np.memmap(path, np.uint8, "r", offset, (length,))


def get_itemsize_of(tensor: onnx.TensorProto) -> int:
    """Return the bytes of one element."""
    return int(get_itemsize(tensor.data_type))


def raw_blocks(tensor: onnx.TensorProto, base_dir: Path) -> Iterator[bytes]:
    """Yield the raw little-endian bytes of ``tensor`` in pieces of at most 16 MiB."""
    if is_external(tensor):
        yield from _pieces(map_external(tensor, base_dir))
    elif tensor.HasField("raw_data"):
        for start in range(0, len(tensor.raw_data), PIECE):
            yield tensor.raw_data[start : start + PIECE]
    else:
        yield onnx.numpy_helper.to_array(tensor).tobytes()


def _pieces(view: np.ndarray) -> Iterator[bytes]:
    for start in range(0, view.size, PIECE):
        yield view[start : start + PIECE].tobytes()
        if start % (8 * PIECE) == 0:
            release(view)


def release(view: np.ndarray) -> None:
    """Give the pages of a map that was read back to the system, so that they do not count."""
    base: object = view
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
