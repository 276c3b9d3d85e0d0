"""Shape rules of elementwise operators, with the arithmetic on shapes that exporters write."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto

from opfuse.graph.dims import Sym, at_least, maximum, minimum, never_equal
from opfuse.graph.facts import Fact, Op, Rule, broadcast_shapes
from opfuse.graph.values import FLOATS, INTEGERS, attempt

BOOL = int(TensorProto.BOOL)
Scalar: TypeAlias = Any  # a Dim, a bool, or a float
OneOutput: TypeAlias = Callable[[Op], Fact]


class Undecided(ValueError):
    """The result depends on the sizes of the symbols."""


def pointwise(function: Callable[..., Scalar] | None = None, dtype: int | None = None) -> OneOutput:
    """The rule of an operator that broadcasts all its inputs and applies ``function``."""

    def rule(op: Op) -> Fact:
        out = op.dtype() if dtype is None else dtype
        shape = broadcast_shapes(map(op.shape, range(len(op.node.inputs))))
        values = op.values() if function is not None else None
        if function is None or values is None:
            return Fact(shape, out)
        typed, given = function, values
        return Fact(shape, out, attempt(lambda: _apply(typed, given, out)))

    return rule


def like_first(
    function: Callable[..., Scalar] | None = None, dtype: int | None = None
) -> OneOutput:
    """The rule of an operator whose output has the shape of its first input."""

    def rule(op: Op) -> Fact:
        out = op.dtype() if dtype is None else dtype
        value = op.value() if function is not None else None
        if function is None or value is None:
            return Fact(op.shape(), out)
        typed, given = function, value
        return Fact(op.shape(), out, attempt(lambda: _apply(typed, [given], out)))

    return rule


def _apply(
    function: Callable[..., Scalar], values: list[np.ndarray], dtype: int | None
) -> np.ndarray:
    def element(*arguments: Scalar) -> Scalar:
        if any(isinstance(argument, Sym) for argument in arguments):
            arguments = tuple(map(_whole, arguments))
        return store(function(*arguments), dtype)

    with np.errstate(all="ignore"):  # inf and NaN are what the operator computes there too
        return np.asarray(np.frompyfunc(element, len(values), 1)(*values), dtype=object)


def _whole(scalar: Scalar) -> Scalar:
    """A float with an integer's value as that integer, for arithmetic with symbols."""
    return int(scalar) if isinstance(scalar, float) and scalar.is_integer() else scalar


def store(scalar: Scalar, dtype: int | None) -> Scalar:
    """``scalar`` as a tensor of ``dtype`` holds it.

    Raises:
        Undecided: It would wrap around or be rounded in a way that is not defined.
    """
    if dtype == BOOL:
        return bool(scalar)
    if isinstance(scalar, Sym):
        return scalar
    if dtype in FLOATS:
        # One rounding of the float64 result is the correctly rounded result for + - * / sqrt.
        return float(FLOATS[dtype](scalar))
    low, high = INTEGERS.get(dtype, (0, 0))
    if not isinstance(scalar, int) or not low <= scalar < high:
        raise Undecided("out of range")
    return int(scalar)


def _divide(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if not (at_least(a, 0) and at_least(b, 0)):
        raise Undecided("the quotient rounds towards zero")
    return a // b


def _divide_op(op: Op) -> Fact:
    return (_float_division if op.dtype() in FLOATS else _int_division)(op)


def _divide_exactly(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = a // b
    if quotient * b != a:
        raise Undecided("the quotient is a fraction")
    return quotient


_int_division = pointwise(_divide)
_float_division = pointwise(_divide_exactly)


def _mod_op(op: Op) -> Fact:
    return (_fmod if op.attr("fmod", 0) or op.dtype() in FLOATS else _mod)(op)


def _power(a: Scalar, b: Scalar) -> Scalar:
    if not isinstance(b, int) or isinstance(a, float) or not 0 <= b <= 4:
        raise Undecided("not a small integer power")
    return math.prod([a] * b)


def _equal(a: Scalar, b: Scalar) -> bool:
    if a == b:
        return True
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return False
    if never_equal(a, b):
        return False
    raise Undecided("equal or not")


def _less(a: Scalar, b: Scalar) -> bool:
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return bool(a < b)
    if at_least(b, a + 1):
        return True
    if at_least(a, b):
        return False
    raise Undecided("less or not")


def _at_most(a: Scalar, b: Scalar) -> bool:
    """``a <= b``, which is not ``not b < a`` where one is NaN."""
    if not isinstance(a, Sym) and not isinstance(b, Sym):
        return bool(a <= b)
    return not _less(b, a)


def _least(*scalars: Scalar) -> Scalar:
    return minimum(*scalars) if any(isinstance(s, Sym) for s in scalars) else min(scalars)


def _greatest(*scalars: Scalar) -> Scalar:
    return maximum(*scalars) if any(isinstance(s, Sym) for s in scalars) else max(scalars)


def _absolute(a: Scalar) -> Scalar:
    if isinstance(a, Sym):
        return _greatest(a, -a)
    return abs(a)


def _rounded(function: Callable[[float], int]) -> Callable[[Scalar], Scalar]:
    return lambda a: a if isinstance(a, Sym) else float(function(a))


def _clip(op: Op) -> Fact:
    bounds = [i for i in (1, 2) if op.has(i)]
    values = [op.value(i) for i in (0, *bounds)]
    if op.value() is None or any(value is None for value in values):
        return Fact(op.shape(), op.dtype())
    result = op.value()
    for index in bounds:
        bound, function = op.value(index), _greatest if index == 1 else _least
        result = attempt(
            lambda f=function, r=result, b=bound: _apply(f, [r, b], op.dtype())  # type: ignore[misc]
        )
    return Fact(op.shape(), op.dtype(), result)


def _converter(dtype: int | None) -> Callable[[Scalar], Scalar]:
    def convert(a: Scalar) -> Scalar:
        if dtype == BOOL:
            return not _equal(a, 0)
        if dtype in INTEGERS and not isinstance(a, Sym):
            return int(a)
        return a

    return convert


def _cast(op: Op) -> Fact:
    return like_first(_converter(int(op.attr("to"))), int(op.attr("to")))(op)


def _cast_like(op: Op) -> Fact:
    dtype = op.dtype(1)
    return like_first(_converter(dtype), dtype)(op) if dtype else Fact(op.shape())


def _where(op: Op) -> Fact:
    shape = broadcast_shapes(map(op.shape, range(3)))
    dtype = op.dtype(1)
    condition = op.value()
    if condition is None or shape is None:
        return Fact(shape, dtype)
    if len({bool(item) for item in condition.ravel()}) == 1:
        chosen = op.value(1 if condition.ravel()[0] else 2)
        if chosen is None or not all(isinstance(dim, int) for dim in shape):
            return Fact(shape, dtype)
        return Fact(shape, dtype, attempt(lambda: np.broadcast_to(chosen, shape)))  # type: ignore[arg-type]
    values = op.values()
    if values is None:
        return Fact(shape, dtype)
    given = values
    return Fact(
        shape,
        dtype,
        attempt(lambda: _apply(lambda c, a, b: a if c else b, given, dtype)),
    )


def _identity(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype(), op.value())


def _dropout(op: Op) -> tuple[Fact, ...]:
    return Fact(op.shape(), op.dtype()), Fact(op.shape(), BOOL)


def _quantize(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype(2) if op.has(2) else int(TensorProto.UINT8))


def _dequantize(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype(1))


_mod = pointwise(operator.mod)
_fmod = pointwise()
_PLAIN = (
    *(
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Celu",
        "Cos",
        "Cosh",
    ),
    *(
        "CumSum",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "LRN",
    ),
    *(
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Mish",
    ),
    *(
        "PRelu",
        "RotaryEmbedding",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
    ),
    *(
        "Softmax",
        "Softplus",
        "Softsign",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Trilu",
    ),
)
_BROADCAST = ["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mean"]

RULES: dict[str, Rule] = {
    **{name: like_first() for name in _PLAIN},
    **{name: pointwise() for name in _BROADCAST},
    "Abs": like_first(_absolute),
    "Add": pointwise(operator.add),
    "And": pointwise(lambda a, b: a and b, BOOL),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": like_first(_rounded(math.ceil)),
    "Clip": _clip,
    "DequantizeLinear": _dequantize,
    "Div": _divide_op,
    "Dropout": _dropout,
    "Equal": pointwise(_equal, BOOL),
    "Floor": like_first(_rounded(math.floor)),
    "Greater": pointwise(lambda a, b: _less(b, a), BOOL),
    "GreaterOrEqual": pointwise(lambda a, b: _at_most(b, a), BOOL),
    "Identity": _identity,
    "IsInf": like_first(None, BOOL),
    "IsNaN": like_first(None, BOOL),
    "Less": pointwise(_less, BOOL),
    "LessOrEqual": pointwise(_at_most, BOOL),
    "Max": pointwise(_greatest),
    "Min": pointwise(_least),
    "Mod": _mod_op,
    "Mul": pointwise(operator.mul),
    "Neg": like_first(operator.neg),
    "Not": like_first(operator.not_, BOOL),
    "Or": pointwise(lambda a, b: a or b, BOOL),
    "Pow": pointwise(_power),
    "QuantizeLinear": _quantize,
    "Reciprocal": like_first(lambda a: 1.0 / a),
    "Relu": like_first(lambda a: _greatest(a, 0)),
    "Sqrt": like_first(math.sqrt),
    "Sub": pointwise(operator.sub),
    "Sum": pointwise(lambda *scalars: sum(scalars)),
    "Where": _where,
    "Xor": pointwise(operator.xor, BOOL),
}
