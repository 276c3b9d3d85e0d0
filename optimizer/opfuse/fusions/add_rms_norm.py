"""AddRmsNorm: sum = x + residual; y = RmsNorm(sum). The sum is the residual stream's next value."""

from __future__ import annotations

from opfuse.fusions import rms_norm
from opfuse.fusions.guards import floating, same_shape
from opfuse.graph.definition import Definition, Uses
from opfuse.graph.fusion import Found, Fusion, NewNode, Replacement
from opfuse.graph.pattern import Var, fused, op

total = op.Add(Var("x"), Var("residual"))
y = fused.RmsNorm(total, Var("gamma"))


def _build(found: Found) -> Replacement:
    floating(found, "x", "residual")
    same_shape(found, "x", "residual")
    outputs = (found.anchor.outputs[0], found.node(total).outputs[0])
    inputs = (found["x"], found["residual"], found["gamma"])
    attrs = {"epsilon": found.anchor.attrs["epsilon"]}
    return Replacement([NewNode("AddRmsNorm", inputs, outputs, attrs)])


def _body(uses: Uses) -> str:
    return f"sum = Add(x, residual)\n{rms_norm.statements(uses.opset, 'sum')}"


DEFINITION = Definition(
    "AddRmsNorm",
    ("x", "residual", "gamma"),
    ("y", "sum"),
    ("epsilon",),
    _body,
    in_fp32=("gamma",),
)
FUSION = Fusion("AddRmsNorm", ("RmsNorm",), y, _build, domain="opfuse")
