"""Weights as descriptions that travel to a child process and are read there, mapped, when used."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.graph import weights
from opfuse.graph.external import extent
from opfuse.graph.protos import byte_size, is_external
from opfuse.numerics.compare import Array


@dataclass(frozen=True)
class InFile:
    """A tensor whose raw bytes lie in ``path`` from ``offset`` on."""

    element: int
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return _nbytes(self.element, self.shape)

    def array(self) -> Array:
        """The values, read-only and mapped: untouched pages take no memory."""
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.element)
        if prod(self.shape) == 0:
            return np.empty(self.shape, dtype)
        if dtype.itemsize * prod(self.shape) != self.nbytes:
            return numpy_helper.to_array(self._loaded())
        return np.memmap(self.path, dtype, "r", self.offset, self.shape)

    def _loaded(self) -> TensorProto:
        """For packed types, whose elements share bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            raw = file.read(self.nbytes)
        return TensorProto(data_type=self.element, dims=self.shape, raw_data=raw)


@dataclass(frozen=True)
class InMemory:
    """A tensor whose values travel along."""

    values: Array

    @property
    def element(self) -> int:
        """The ONNX element type."""
        return int(onnx.helper.np_dtype_to_tensor_dtype(self.values.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(self.values.nbytes)

    def array(self) -> Array:
        """The values."""
        return self.values


@dataclass(frozen=True)
class Joined:
    """A tensor that is the concatenation of ``parts`` along ``axis``."""

    parts: tuple[Stored, ...]
    axis: int

    @property
    def element(self) -> int:
        """The ONNX element type."""
        return self.parts[0].element

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return sum(part.nbytes for part in self.parts)

    def array(self) -> Array:
        """The values."""
        return np.concatenate([part.array() for part in self.parts], self.axis)


@dataclass(frozen=True)
class Converted:
    """A tensor in another element type than it is kept in."""

    kept: Stored
    element: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self.kept.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return _nbytes(self.element, self.shape)

    def array(self) -> Array:
        """The values."""
        return self.kept.array().astype(onnx.helper.tensor_dtype_to_np_dtype(self.element))


@dataclass(frozen=True)
class Turned:
    """A matrix that has the first axis of a kept tensor in its columns."""

    kept: Stored

    @property
    def element(self) -> int:
        """The ONNX element type."""
        return self.kept.element

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        features, *rest = self.kept.shape
        return prod(rest), features

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.kept.nbytes

    def array(self) -> Array:
        """The values."""
        return np.ascontiguousarray(self.kept.array().reshape(self.shape[::-1]).T)


Stored: TypeAlias = InFile | InMemory | Joined | Converted | Turned


def of_tensor(tensor: TensorProto, base_dir: Path) -> Stored:
    """Describe an initializer; the values of an external one are not read."""
    if not is_external(tensor):
        return InMemory(numpy_helper.to_array(tensor))
    place = extent(tensor)
    path = (base_dir / place.location).resolve()
    return InFile(tensor.data_type, tuple(tensor.dims), path, place.offset)


def of_constant(constant: gs.Constant, base_dir: Path) -> Stored:
    """Describe a graph's constant without loading it into the graph."""
    values = constant._values
    if isinstance(values, weights.ConcatValues):
        parts = tuple(of_constant(part, values.base_dir) for part in values.parts)
        return Joined(parts, values.axis)
    if isinstance(values, weights.CastValues):
        return Converted(of_constant(values.parts[0], values.base_dir), values.element)
    if isinstance(values, weights.MatrixValues):
        return Turned(of_constant(values.parts[0], values.base_dir))
    if isinstance(values, LazyValues):
        return of_tensor(values.tensor, base_dir)
    return InMemory(weights.load(constant, base_dir))


def to_proto(name: str, stored: Stored) -> TensorProto:
    """The tensor as an initializer with its values inline."""
    tensor = numpy_helper.from_array(np.asarray(stored.array(), order="C"), name)
    tensor.data_type = stored.element
    return tensor


def _nbytes(element: int, shape: tuple[int, ...]) -> int:
    size = byte_size(TensorProto(data_type=element, dims=shape))
    assert size is not None
    return size
