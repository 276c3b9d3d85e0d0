"""AddLayerNorm: sum = x + residual; y = LayerNormalization(sum) over the last axis."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import (
    floating,
    last_axis,
    own_type,
    same_shape,
    static,
    vector,
)
from opfuse.graph.definition import Definition, Uses, mean_last
from opfuse.graph.fusion import Decline, Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, maybe_cast, op

total = op.Add(Var("x"), Var("residual"))
wide = maybe_cast(total)
plain = any_of(
    op.LayerNormalization(wide, Var("gamma"), Var("beta")),
    op.LayerNormalization(wide, Var("gamma")),
)
y = any_of(op.Cast(plain), plain)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "residual")
    shape = same_shape(found, "x", "residual")
    result = found.anchor.outputs[0]
    own_type(found, dtype)
    norm = next(node for node in found.nodes if node.op == "LayerNormalization")
    if len(shape) == 0:
        raise Decline("a scalar")
    last_axis(norm, len(shape))
    if len(norm.outputs) != 1:
        raise Miss("its mean or deviation is read as well", norm)
    if norm.attrs.get("stash_type", 1) != 1:
        raise Miss("computes in another type than fp32", norm)
    gamma = vector(found, "gamma", shape[-1], dtype)
    beta = vector(found, "beta", shape[-1], dtype) if found.has("beta") else _zeros(found, gamma)
    inputs = (found["x"], found["residual"], gamma, beta)
    attrs = {"epsilon": float(norm.attrs.get("epsilon", 1e-5))}
    return Replacement(
        [NewNode("AddLayerNorm", inputs, (result, found.node(total).outputs[0]), attrs)]
    )


def _zeros(found: Found, gamma: gs.Tensor) -> gs.Tensor:
    """The op has a beta; a norm without one adds nothing."""
    shape = found.work.shape(gamma) or ()
    columns = static(shape[-1], "the length of gamma", found.anchor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.work.dtype(gamma) or 1)
    return found.work.constant(gamma, "no_beta", np.zeros(columns, dtype))


def _body(uses: Uses) -> str:
    return f"sum = Add(x, residual)\n{statements(uses.opset, 'sum')}"


def statements(opset: int, source: str) -> str:
    """Return the definition of y from ``source``, gamma, and beta: in fp32, rounded once."""
    return f"""
        wide = Cast<to: int = 1>({source})
        {mean_last(opset, "mean", "wide")}
        centred = Sub(wide, mean)
        square = Mul(centred, centred)
        {mean_last(opset, "spread", "square")}
        epsilon = Constant<value_float: float = @epsilon>()
        variance = Add(spread, epsilon)
        root = Sqrt(variance)
        unit = Div(centred, root)
        gamma_wide = Cast<to: int = 1>(gamma)
        beta_wide = Cast<to: int = 1>(beta)
        scaled = Mul(unit, gamma_wide)
        shifted = Add(scaled, beta_wide)
        y = CastLike(shifted, x)"""


DEFINITION = Definition(
    "AddLayerNorm",
    ("x", "residual", "gamma", "beta"),
    ("y", "sum"),
    ("epsilon",),
    _body,
    in_fp32=("gamma", "beta"),
)
FUSION = Fusion("AddLayerNorm", ("Cast", "LayerNormalization"), y, _build)
