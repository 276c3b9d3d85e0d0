"""RmsNorm: y = x * rsqrt(mean(x^2, -1) + epsilon) * gamma (Zhang and Sennrich 2019, eq. 4)."""

from __future__ import annotations

import onnx

from opfuse.fusions.guards import (
    cast_to,
    equals,
    floating,
    for_other_weights,
    known_casts,
    last_axis,
    own_type,
    reduces_last,
    text,
    vector,
)
from opfuse.fusions.unit import epsilon_of, unit
from opfuse.graph.definition import Definition, Uses, mean_last
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Var, any_of, maybe_cast, op
from opfuse.graph.protos import HALVES

x, gamma = Var("x"), Var("gamma")
wide = maybe_cast(x)
square = any_of(op.Pow(wide, Const("two")), op.Mul(wide, wide))
mean = op.ReduceMean(square, ...)
over_root = unit(wide, mean)
whole = op.RMSNormalization(x, gamma)
scaled = op.Mul(maybe_cast(over_root.whole), gamma)
y = any_of(whole, scaled, op.Cast(scaled))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    shape = found.shape("x")
    if found.has(whole):
        last_axis(found.node(whole), len(shape))
        epsilon = float(found.node(whole).attrs.get("epsilon", 1e-5))
        if found.node(whole).attrs.get("stash_type", 1) != 1:
            raise Miss("computes in another type than fp32", found.anchor)
    else:
        reduces_last(found.work, found.node(mean), len(shape))
        equals(found, "two", 2.0)
        epsilon = epsilon_of(found, over_root)
    result = found.anchor.outputs[0]
    narrow = _narrow(found, dtype)
    if not narrow:
        own_type(found, dtype)
    known_casts(found)
    if found.work.shape(result) != shape:
        raise Miss(f"gamma widens {text(shape)}", found.anchor)
    weight = vector(found, "gamma", shape[-1], narrow or dtype)
    made: list[NewNode] = []
    behind: list[NewNode] = []
    if narrow:
        wide = found.work.fresh(result, "wide", dtype)
        weight = cast_to(found.work, weight, "wide", dtype, made)
        behind.append(NewNode("Cast", (wide,), (result,), {"to": narrow}, ""))
        result = wide
    made.append(NewNode("RmsNorm", (found["x"], weight), (result,), {"epsilon": epsilon}))
    return Replacement([*made, *behind], shared=for_other_weights(found, scaled))


def _narrow(found: Found, dtype: int) -> int:
    """Return the half precision that an fp32 x is rounded to before its weights, or 0.

    The residual sums of Llama are in fp32 where TorchScript writes the attention of fp16 in fp32.
    """
    result = found.work.dtype(found.anchor.outputs[0])
    product = found.has(scaled) and found.anchor is found.node(scaled)
    alike = result in HALVES and found.work.dtype(found["gamma"]) == result
    return int(result or 0) if product and alike and dtype == onnx.TensorProto.FLOAT else 0


def _body(uses: Uses) -> str:
    return "\n".join((statements(uses.opset, "x"),))


def statements(opset: int, source: str) -> str:
    """Return the definition of y from ``source`` and gamma, computed in fp32 and rounded once."""
    return f"""
        wide = Cast<to: int = 1>({source})
        square = Mul(wide, wide)
        {mean_last(opset, "mean", "square")}
        epsilon = Constant<value_float: float = @epsilon>()
        variance = Add(mean, epsilon)
        root = Sqrt(variance)
        unit = Div(wide, root)
        gamma_wide = Cast<to: int = 1>(gamma)
        scaled = Mul(unit, gamma_wide)
        y = CastLike(scaled, x)"""


DEFINITION = Definition("RmsNorm", ("x", "gamma"), ("y",), ("epsilon",), _body, in_fp32=("gamma",))
# Casts and products alone are gates, too.
_MEANS = "RMSNormalization|ReduceMean|Sqrt|Reciprocal|Div|Pow"
FUSION = Fusion("RmsNorm", ("RMSNormalization", "Cast", "Mul"), y, _build, near=4, key=_MEANS)
