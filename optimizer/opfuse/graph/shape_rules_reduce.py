"""Shape rules of reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import numpy as np
from onnx import TensorProto

from opfuse.graph.dims import maximum, minimum, product
from opfuse.graph.facts import Fact, Op, Rule
from opfuse.graph.shape_rules_elementwise import store
from opfuse.graph.values import INTEGERS, attempt

INT64 = int(TensorProto.INT64)


def reduction(function: Callable[[Iterable[Any]], Any] | None = None) -> Rule:
    """The rule of ``Reduce*``; ``function`` folds a small integer tensor to one number."""

    def rule(op: Op) -> Fact:
        shape = op.shape()
        if shape is None:
            return Fact(None, op.dtype())
        axes = op.axes(1)
        if not axes and (op.has(1) or op.attr("axes") is not None) and axes is None:
            return Fact(_of_unknown_axes(op), op.dtype())
        if not axes and op.attr("noop_with_empty_axes", 0):
            return Fact(shape, op.dtype(), op.value())
        gone = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
        return Fact(_kept(op, gone), op.dtype(), _folded(op, gone, function))

    return rule


def _kept(op: Op, gone: set[int]) -> tuple[Any, ...]:
    shape = op.shape() or ()
    if op.attr("keepdims", 1):
        return tuple(1 if axis in gone else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in gone)


def _of_unknown_axes(op: Op) -> tuple[Any, ...] | None:
    return tuple(op.unknown_dim() for _ in op.shape() or ()) if op.attr("keepdims", 1) else None


def _folded(
    op: Op, gone: set[int], function: Callable[[Iterable[Any]], Any] | None
) -> np.ndarray | None:
    value, dtype = op.value(), op.dtype()
    if function is None or value is None or dtype not in INTEGERS or len(gone) != value.ndim:
        return None
    fold, shape = function, (1,) * value.ndim if op.attr("keepdims", 1) else ()
    return attempt(lambda: np.array([store(fold(value.ravel()), dtype)], object).reshape(shape))


def _arg_extreme(op: Op) -> Fact:
    shape = op.shape()
    if shape is None:
        return Fact(None, INT64)
    return Fact(_kept(op, {int(op.attr("axis", 0)) % len(shape)}), INT64)


RULES: dict[str, Rule] = {
    "ArgMax": _arg_extreme,
    "ArgMin": _arg_extreme,
    "ReduceL1": reduction(),
    "ReduceL2": reduction(),
    "ReduceLogSum": reduction(),
    "ReduceLogSumExp": reduction(),
    "ReduceMax": reduction(lambda items: reduce(maximum, items)),
    "ReduceMean": reduction(),
    "ReduceMin": reduction(lambda items: reduce(minimum, items)),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(sum),
    "ReduceSumSquare": reduction(),
}
