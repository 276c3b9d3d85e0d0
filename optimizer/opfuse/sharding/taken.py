"""A rank's part of a weight, read from the source file when it is written and not kept."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import get_itemsize
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.graph.weights import (
    PIECE,
    CastValues,
    ConcatValues,
    DerivedValues,
    MatrixValues,
    gs_dtype,
    load,
    memory,
    onnx_dtype,
    release,
)


class TakenValues(DerivedValues):
    """Entries of another weight, along one axis.

    Attributes:
        parts: The one constant that they are of.
        axis: A non-negative axis.
        indices: Positions on it, in the order of the result.
        base_dir: The folder that external files are relative to.
    """

    def __init__(self, part: gs.Constant, axis: int, indices: np.ndarray, base_dir: Path) -> None:
        self.parts = (part,)
        self.axis = axis
        self.indices = indices
        self.base_dir = base_dir
        self.shape = [*part.shape[:axis], len(indices), *part.shape[axis + 1 :]]
        self.dtype = gs_dtype(onnx_dtype(part))
        self.nbytes = prod(self.shape) * get_itemsize(onnx_dtype(part))
        self.tensor = onnx.TensorProto(
            data_type=onnx_dtype(part), dims=self.shape, data_location=onnx.TensorProto.EXTERNAL
        )

    def load(self) -> np.ndarray:
        """Return the whole weight as an array."""
        data = b"".join(self.blocks())
        target = onnx.helper.tensor_dtype_to_np_dtype(onnx_dtype(self.parts[0]))
        return np.frombuffer(data, target).reshape(self.shape)

    def blocks(self) -> Iterator[bytes]:
        """Yield the raw row-major bytes in pieces of at most 16 MiB."""
        part = self.parts[0]
        rows, size = prod(part.shape[: self.axis]), part.shape[self.axis]
        view = memory(part, self.base_dir).reshape(rows, size, -1)
        width = max(1, view.shape[2])
        if rows == 1:  # whole rows of the weight: one range of the file, where they are in order
            step = max(1, PIECE // width)
            for start in range(0, len(self.indices), step):
                yield view[0, self.indices[start : start + step]].tobytes()
                release(view)
            return
        step = max(1, PIECE // (width * size))
        for start in range(0, rows, step):
            yield view[start : start + step, self.indices].tobytes()
            release(view)


def take(constant: gs.Constant, axis: int, indices: np.ndarray, base_dir: Path) -> gs.Constant:
    """Return a constant of the entries of ``constant`` at ``indices`` along ``axis``.

    Of a weight that is itself made of others, each gives what it has of them: a merged weight is
    never put together to be cut again.
    """
    values = constant._values
    name = constant.name
    if isinstance(values, CastValues):
        inner = take(values.parts[0], axis, indices, base_dir)
        return gs.Constant(name, CastValues(inner, values.element, base_dir))
    if isinstance(values, MatrixValues) and len(values.parts[0].shape) == 2:
        inner = take(values.parts[0], 1 - axis, indices, base_dir)
        return gs.Constant(name, MatrixValues(inner, base_dir))
    if isinstance(values, ConcatValues):
        if values.axis != axis:
            parts = tuple(take(part, axis, indices, base_dir) for part in values.parts)
            return gs.Constant(name, ConcatValues(parts, values.axis, base_dir))
        ends = np.cumsum([part.shape[axis] for part in values.parts])
        owner = np.searchsorted(ends, indices, side="right")
        if (np.diff(owner) >= 0).all():
            starts = ends - [part.shape[axis] for part in values.parts]
            parts = tuple(
                take(part, axis, indices[owner == number] - starts[number], base_dir)
                for number, part in enumerate(values.parts)
                if (owner == number).any()
            )
            return gs.Constant(name, ConcatValues(parts, axis, base_dir))
    if isinstance(values, LazyValues):
        return gs.Constant(name, TakenValues(constant, axis, indices, base_dir))
    return gs.Constant(name, np.take(load(constant, base_dir), indices, axis))
