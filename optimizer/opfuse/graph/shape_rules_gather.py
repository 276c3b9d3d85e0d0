"""Shape rules of operators that look elements up, write them by index, or rank them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from opfuse.graph.facts import Fact, Op, Rule
from opfuse.graph.shape_rules_layout import constant_shape
from opfuse.graph.values import attempt

INT64 = int(TensorProto.INT64)


def _gather(op: Op) -> Fact:
    shape, indices, value = op.shape(), op.shape(1), op.value()
    if shape is None or indices is None:
        return Fact(None, op.dtype())
    axis = int(op.attr("axis", 0)) % len(shape)
    out = (*shape[:axis], *indices, *shape[axis + 1 :])
    picks = op.integers(1) if value is not None else None
    if value is None or picks is None:
        return Fact(out, op.dtype())
    where = np.asarray(picks, np.int64).reshape(constant_shape(indices))
    return Fact(out, op.dtype(), attempt(lambda: np.take(value, where, axis)))


def _gather_elements(op: Op) -> Fact:
    return Fact(op.shape(1), op.dtype())


def _gather_nd(op: Op) -> Fact:
    shape, indices = op.shape(), op.shape(1)
    if shape is None or indices is None or not isinstance(indices[-1], int):
        return Fact(None, op.dtype())
    batch = int(op.attr("batch_dims", 0))
    return Fact((*indices[:-1], *shape[batch + indices[-1] :]), op.dtype())


def _scatter(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype())


def _top_k(op: Op) -> tuple[Fact, ...]:
    shape, count = op.shape(), op.dims(1)
    if shape is None or count is None:
        return Fact(None, op.dtype()), Fact(None, INT64)
    axis = int(op.attr("axis", -1)) % len(shape)
    out = (*shape[:axis], op.size(count[0]), *shape[axis + 1 :])
    return Fact(out, op.dtype()), Fact(out, INT64)


def _compress(op: Op) -> Fact:
    shape, axis = op.shape(), op.attr("axis")
    if axis is None:
        return Fact((op.unknown_dim(),), op.dtype())
    if shape is None:
        return Fact(None, op.dtype())
    axis = int(axis) % len(shape)
    return Fact((*shape[:axis], op.unknown_dim(), *shape[axis + 1 :]), op.dtype())


RULES: dict[str, Rule] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TensorScatter": _scatter,
    "TopK": _top_k,
}
