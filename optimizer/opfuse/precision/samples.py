"""Calibration inputs: .npz files with an array for each input of the model."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from opfuse.errors import InputError

Sample = dict[str, np.ndarray[Any, Any]]

# What NumPy lets through of a damaged archive or header, or of a header that asks for terabytes.
_UNREADABLE = (
    *(OSError, EOFError, AttributeError, ValueError, TypeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, NotImplementedError, zlib.error),
)


def read(paths: Sequence[Path], graph: GraphProto) -> list[Sample]:
    """Return the samples of all files, in their order.

    An array has the shape of its input, or one axis more in front: then the file holds as many
    samples as that axis is long.

    Raises:
        InputError: A file is none, an input has no array, or an array does not fit its input.
    """
    given = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in given]
    return [sample for path in paths for sample in _file(path, inputs)]


def _file(path: Path, inputs: Sequence[ValueInfoProto]) -> list[Sample]:
    arrays = _arrays(path)
    names = [info.name for info in inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"calibration file {path} has no array {', '.join(map(repr, missing))}",
            f"write one for each input: numpy.savez(file, **{{{names[0]!r}: array, ...}})",
        )
    stacked = {info.name: _fitted(path, info, arrays[info.name]) for info in inputs}
    lengths = {name: len(array) for name, (array, several) in stacked.items() if several}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"calibration file {path} has different numbers of samples: {lengths}",
            "give every input as many",
        )
    count = next(iter(lengths.values()), 1)
    return [
        {name: array[index] if several else array for name, (array, several) in stacked.items()}
        for index in range(count)
    ]


def _arrays(path: Path) -> Sample:
    try:
        file = np.load(path, allow_pickle=False)
        found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"calibration file {path} does not exist", "check its path") from None
    except _UNREADABLE as error:
        raise InputError(
            f"calibration file {path} cannot be read as .npz: {error}",
            "write it with numpy.savez",
        ) from None
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _fitted(
    path: Path, info: ValueInfoProto, array: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], bool]:
    """The array in the input's type, and whether it holds several samples."""
    kind = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    extra = array.ndim - len(dims)
    sizes = array.shape[max(extra, 0) :]
    fits = len(sizes) == len(dims) and all(
        want is None or want == have for want, have in zip(dims, sizes, strict=True)
    )
    if extra not in (0, 1) or not fits:
        raise InputError(
            f"calibration file {path}: array {info.name!r} has the shape {list(array.shape)}, the "
            f"input {['?' if dim is None else dim for dim in dims]}",
            "give the shape of the input, or several samples along one axis more in front",
        )
    kinds = "fV" if kind.elem_type in _FLOATS else "iub"  # V: bfloat16 as NumPy stores it
    if array.dtype.kind not in kinds:
        raise InputError(
            f"calibration file {path}: array {info.name!r} is {array.dtype}, the input {dtype}",
            "give the type of the input",
        )
    return array.astype(dtype), extra == 1


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
