"""AddLayerNorm: sum = x + residual; y = LayerNormalization(sum) over the last axis."""

from __future__ import annotations

from opfuse.fusions.guards import floating, last_axis, same_shape, vector
from opfuse.graph.definition import Definition, Uses, mean_last
from opfuse.graph.fusion import Decline, Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, op

total = op.Add(Var("x"), Var("residual"))
y = op.LayerNormalization(total, Var("gamma"), Var("beta"))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "residual")
    shape = same_shape(found, "x", "residual")
    if len(shape) == 0:
        raise Decline("a scalar")
    last_axis(found.anchor, len(shape))
    if len(found.anchor.outputs) != 1:
        raise Miss("its mean or deviation is read as well", found.anchor)
    if found.anchor.attrs.get("stash_type", 1) != 1:
        raise Miss("computes in another type than fp32", found.anchor)
    weights = (vector(found, name, shape[-1], dtype) for name in ("gamma", "beta"))
    inputs = (found["x"], found["residual"], *weights)
    outputs = (found.anchor.outputs[0], found.node(total).outputs[0])
    attrs = {"epsilon": float(found.anchor.attrs.get("epsilon", 1e-5))}
    return Replacement([NewNode("AddLayerNorm", inputs, outputs, attrs)])


def _body(uses: Uses) -> str:
    return f"""
        sum = Add(x, residual)
        wide = Cast<to: int = 1>(sum)
        {mean_last(uses.opset, "mean", "wide")}
        centred = Sub(wide, mean)
        square = Mul(centred, centred)
        {
        mean_last(uses.opset, "spread", "square")
        .replace("axis =", "axis_again =")
        .replace(", axis)", ", axis_again)")
    }
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
    "AddLayerNorm", ("x", "residual", "gamma", "beta"), ("y", "sum"), ("epsilon",), _body
)
FUSION = Fusion("AddLayerNorm", ("LayerNormalization",), y, _build)
