"""Compares both forms of a case where no rounding hides that they compute different things.

A scale that is 5 % off, or an epsilon ten times as large, is less than bfloat16 rounds. So the
forms also run in float64, on inputs and weights that are rounded as the type of the case does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from opfuse.graph.protos import HALVES, all_tensors
from opfuse.numerics.compare import TOLERANCE, Array, is_float
from opfuse.numerics.retype import convert, retype
from opfuse.numerics.session import CannotRun, Reference, Runner, open_model
from opfuse.numerics.settle import Outcome, settle

SLOW_ELEMENTS = 1 << 18  # above this the reference evaluator takes seconds

_TOLERANCE = 2e-5  # float64: attributes are in fp32, and sources round constants to five digits
# What constants of activations stand for; models in half precision hold them rounded.
_WRITTEN = (math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715, 1.702)


class Exact:
    """The original and the fused form of one case without the roundings of half precision.

    They run in float64, or in fp32 where they are too large for ONNX's evaluator, or it lacks an
    operator.

    Args:
        before, after: The forms.
        outputs: How many results of ``before`` to compare.
        shared: Inputs of ``after`` that the other results of ``before`` are.
    """

    def __init__(
        self, before: ModelProto, after: ModelProto, outputs: int, shared: tuple[str, ...]
    ) -> None:
        self._forms, self._outputs, self._shared = (before, after), outputs, shared
        self._open = cache(self._opened)

    def compare(self, feeds: Mapping[str, Array]) -> Outcome:
        """Judge the forms by what the case was fed in half precision."""
        if sum(array.size for array in feeds.values()) <= SLOW_ELEMENTS:
            try:
                return self._judge(widened(feeds, TensorProto.DOUBLE), TensorProto.DOUBLE)
            except CannotRun:
                pass
        try:
            return self._judge(widened(feeds, TensorProto.FLOAT), TensorProto.FLOAT)
        except CannotRun as reason:
            return Outcome(reason=f"cannot be compared in fp32: {reason}", refused=True)

    def _judge(self, feeds: Mapping[str, Array], element: int) -> Outcome:
        """With constants as they are; where these refute, with what they are the rounding of.

        The fused form of a GELU has the root of 2 in full, the original as its type rounds it.
        """
        outcome = self._compare(feeds, element, meant=False)
        if outcome.reason:
            meant = self._compare(feeds, element, meant=True)
            return outcome if meant.reason else meant
        return outcome

    def _compare(self, feeds: Mapping[str, Array], element: int, *, meant: bool) -> Outcome:
        before, after = self._open(element, meant)
        expected = before.run(feeds)
        read = zip(self._shared, expected[self._outputs :], strict=True)
        actual = after.run({**feeds, **dict(read)})
        wide = element == TensorProto.DOUBLE
        precise = partial(self.precise, feeds, meant=meant) if not wide else _nothing
        tolerance = _TOLERANCE if wide else TOLERANCE[element]
        outcome = settle(expected[: self._outputs], actual, precise, tolerance)
        where = "float64" if wide else "fp32"
        reason = outcome.reason and f"in {where} as well, {outcome.reason}"
        return Outcome(outcome.error, reason, outcome.open)

    def precise(self, feeds: Mapping[str, Array], *, meant: bool = False) -> list[Array] | None:
        """The original computed in float64; None where the evaluator cannot."""
        try:
            before, _ = self._open(TensorProto.DOUBLE, meant)
            return before.run(widened(feeds, TensorProto.DOUBLE))
        except CannotRun:
            return None

    def _opened(self, element: int, meant: bool) -> tuple[Runner, Runner]:
        start = Reference if element == TensorProto.DOUBLE else open_model
        before, after = (_meant(form) if meant else form for form in self._forms)
        floats = HALVES | {TensorProto.FLOAT, TensorProto.DOUBLE}
        return start(retype(before, floats, element)), start(retype(after, floats, element))


def _nothing() -> None:
    """No result settles what is apart in float64."""


def widened(feeds: Mapping[str, Array], element: int) -> dict[str, Array]:
    """The same inputs with all floats in type ``element``."""
    return {n: convert(a, element) if is_float(a) else a for n, a in feeds.items()}


def _meant(model: ModelProto) -> ModelProto:
    """The model with scalars in half precision as the constants that they are the rounding of.

    These are those of activations, and reciprocals of other scalars: exporters write the division
    by a soft cap as a product.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    scalars = [t for t in all_tensors(copy) if t.data_type in HALVES and math.prod(t.dims) == 1]
    values = [numpy_helper.to_array(tensor) for tensor in scalars]
    known = [*_WRITTEN, *(1 / float(value.item()) for value in values if abs(value.item()) > 1)]
    for tensor, value in zip(scalars, values, strict=True):
        with np.errstate(over="ignore"):
            meant = [number for number in known if np.asarray(number).astype(value.dtype) == value]
        if meant:
            exact = np.full(value.shape, meant[0], np.float64)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    return copy
