"""Contents of small tensors, as object arrays of dimensions, booleans, and floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

MAX_ELEMENTS = 64
INTEGERS: dict[int | None, tuple[int, int]] = {
    TensorProto.INT8: (-(1 << 7), 1 << 7),
    TensorProto.INT16: (-(1 << 15), 1 << 15),
    TensorProto.INT32: (-(1 << 31), 1 << 31),
    TensorProto.INT64: (-(1 << 63), 1 << 63),
    TensorProto.UINT8: (0, 1 << 8),
    TensorProto.UINT16: (0, 1 << 16),
    TensorProto.UINT32: (0, 1 << 32),
    TensorProto.UINT64: (0, 1 << 64),
}
FLOATS: dict[int | None, type[np.floating[Any]]] = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
}
_WITH_VALUES = {*INTEGERS, *FLOATS, TensorProto.BOOL}
# What an invalid node makes a rule raise; the node's outputs are then unknown.
INVALID = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def as_value(content: object) -> np.ndarray:
    """An object array of ``content``: an array, a list of scalars, or one scalar.

    Raises:
        ValueError: It has more than `MAX_ELEMENTS` elements.
    """
    if isinstance(content, np.ndarray):
        value = content if content.dtype == object else content.astype(object)
    elif isinstance(content, Sequence) and not isinstance(content, str):
        value = np.empty(len(content), object)
        value[:] = content
    else:
        value = np.empty((), object)
        value[()] = content
    if value.size > MAX_ELEMENTS:
        raise ValueError("too many elements to follow")
    return value


def attempt(function: Callable[[], object]) -> np.ndarray | None:
    """The value that ``function`` computes, or None where it cannot be decided."""
    try:
        return as_value(function())
    except INVALID:
        return None


@cache
def elem_type(dtype: object) -> int | None:
    """The ``onnx.TensorProto`` element type of what gs calls a dtype."""
    if dtype is None or dtype == TensorProto.UNDEFINED:
        return None
    if isinstance(dtype, int):
        return int(dtype)
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))  # type: ignore[call-overload]
    except INVALID:
        return None


def constant_value(constant: gs.Constant) -> np.ndarray | None:
    """The content of a small constant as an object array; None where it is not small or known."""
    element = elem_type(constant.export_dtype)
    if element not in _WITH_VALUES and element != TensorProto.BFLOAT16:
        return None
    if prod(constant.shape) > MAX_ELEMENTS or _is_outside(constant):
        return None
    if element == TensorProto.BFLOAT16:
        return as_value(content(constant).astype(np.float32))
    return as_value(constant.values)


def content(constant: gs.Constant) -> np.ndarray:
    """The content of a constant in its own type.

    ``constant.values`` would make one of a type that NumPy lacks, such as bfloat16, another's, and
    print a warning to stdout.
    """
    tensor = getattr(constant._values, "tensor", None)
    if isinstance(constant.dtype, int) and tensor is not None:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    return np.asarray(constant.values)


def _is_outside(constant: gs.Constant) -> bool:
    """Whether the content lies in an external file, which this module does not open."""
    tensor = getattr(getattr(constant, "_values", None), "tensor", None)
    return getattr(tensor, "data_location", None) == TensorProto.EXTERNAL
