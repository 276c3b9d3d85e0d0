"""Shape rules of operators that make a tensor from a shape, an attribute, or a count."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph.dims import Dim, Sym, at_least, maximum, product
from opfuse.graph.facts import Fact, Op, Rule, Shape
from opfuse.graph.shape_rules_layout import constant_shape
from opfuse.graph.values import FLOATS, MAX_ELEMENTS, as_value, attempt, content, elem_type

INT64 = int(TensorProto.INT64)
FLOAT = int(TensorProto.FLOAT)


def _constant(op: Op) -> Fact:
    tensor = op.attr("value")
    if tensor is not None:
        return _constant_tensor(op, tensor)
    for name, dtype in (("value_int", INT64), ("value_float", FLOAT)):
        if op.attr(name) is not None:
            return Fact((), dtype, as_value(op.attr(name)))
    for name, dtype in (("value_ints", INT64), ("value_floats", FLOAT)):
        if op.attr(name) is not None:
            return _constant_list(list(op.attr(name)), dtype)
    return Fact()


def _constant_list(items: list[float], dtype: int) -> Fact:
    return Fact((len(items),), dtype, attempt(lambda: items))


def _constant_tensor(op: Op, tensor: gs.Constant | np.ndarray) -> Fact:
    if isinstance(tensor, np.ndarray):
        tensor = gs.Constant("", tensor)
    return Fact(op.shape_of(tensor), elem_type(tensor.export_dtype), op.value_of(tensor))


def _shape(op: Op) -> Fact:
    shape = op.shape()
    if shape is None:
        return Fact((op.unknown_dim(),), INT64)
    start, end = op.attr("start", 0), op.attr("end")
    part = shape[start:end]
    return Fact((len(part),), INT64, as_value(part))


def _size(op: Op) -> Fact:
    shape = op.shape()
    return Fact((), INT64, None if shape is None else as_value(product(shape)))


def _constant_of_shape(op: Op) -> Fact:
    filling = op.attr("value")
    given = np.float32(0) if filling is None else filling
    number = content(given) if isinstance(given, gs.Constant) else np.asarray(given)
    dims = op.dims(0)
    dtype = elem_type(number.dtype)
    if dims is None:
        return Fact(None, dtype)
    shape = tuple(map(op.size, dims))
    scalar = number.reshape(-1)[0].item()
    if not isinstance(scalar, bool | int | float):
        return Fact(shape, dtype)
    return Fact(shape, dtype, attempt(lambda: _filled(shape, scalar)))


def _filled(shape: Shape, scalar: object) -> np.ndarray:
    sizes = constant_shape(shape)
    if np.prod(sizes, dtype=object) > MAX_ELEMENTS:
        raise ValueError("too many elements to follow")
    return np.full(sizes, scalar, dtype=object)


def _range(op: Op) -> Fact:
    dtype = op.dtype()
    bounds = [op.value(index) for index in range(3)]
    if any(bound is None for bound in bounds):
        return Fact((op.unknown_dim(),), dtype)
    start, limit, delta = (bound.ravel()[0] for bound in bounds if bound is not None)
    length = op.unknown_dim() if isinstance(delta, Sym) else _range_length(op, start, limit, delta)
    if isinstance(length, Sym) or length > MAX_ELEMENTS or dtype in FLOATS:
        return Fact((length,), dtype)
    return Fact((length,), dtype, as_value([start + step * delta for step in range(length)]))


def _range_length(op: Op, start: Dim | float, limit: Dim | float, delta: float) -> Dim:
    if not isinstance(start, Sym) and not isinstance(limit, Sym):
        return max(math.ceil((limit - start) / delta), 0)
    if not all(isinstance(bound, Sym) or float(bound).is_integer() for bound in (start, limit)):
        return op.unknown_dim()
    first, last = (bound if isinstance(bound, Sym) else int(bound) for bound in (start, limit))
    step = int(delta)
    if step != delta:
        return op.unknown_dim()
    span = last - first if step > 0 else first - last
    count = (span + abs(step) - 1) // abs(step)
    return count if at_least(span, 0) else maximum(count, 0)


def _non_zero(op: Op) -> Fact:
    rank = op.rank()
    return Fact((op.unknown_dim() if rank is None else rank, op.unknown_dim()), INT64)


def _one_hot(op: Op) -> Fact:
    shape, depth = op.shape(), op.dims(1)
    if shape is None or depth is None:
        return Fact(None, op.dtype(2))
    axis = int(op.attr("axis", -1)) % (len(shape) + 1)
    return Fact((*shape[:axis], op.size(depth[0]), *shape[axis:]), op.dtype(2))


def _eye_like(op: Op) -> Fact:
    return Fact(op.shape(), int(op.attr("dtype", op.dtype())))


def _random(op: Op) -> Fact:
    return Fact(tuple(map(int, op.attr("shape"))), int(op.attr("dtype", FLOAT)))


RULES: dict[str, Rule] = {
    "Bernoulli": _eye_like,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "RandomNormal": _random,
    "RandomNormalLike": _eye_like,
    "RandomUniform": _random,
    "RandomUniformLike": _eye_like,
    "Range": _range,
    "Shape": _shape,
    "Size": _size,
}
