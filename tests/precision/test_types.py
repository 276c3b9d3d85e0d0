"""What a body computes in which type, and that every fused op keeps its promise of fp32 inside."""

from __future__ import annotations

from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto

from opfuse.fusions import DEFINITIONS
from opfuse.graph.definition import Uses
from opfuse.precision.rules import EITHER, IN_FP32, PRODUCTS, REDUCTIONS
from opfuse.precision.types import Clash, body_types

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
ATTRIBUTES = {
    "activation": "gelu_tanh",
    "bias": 1,
    "causal": 1,
    "epsilon": 1e-5,
    "head_size": 16,
    "interleaved": 0,
    "kv_num_heads": 2,
    "layout": "BHSD",
    "nan_guard": 1,
    "num_groups": 2,
    "norm": 1,
    "num_heads": 4,
    "rotary_dim": 8,
    "scale": 0.5,
    "softcap": 30.0,
}
# What may be rounded on the way: moved, scaled once before a product, or the product itself.
ROUNDED = {"MatMul", "Identity", "Transpose", "Unsqueeze", "Expand", "Reshape", "CastLike"}
ROUNDED |= {"Add", "Split"}  # AddRmsNorm's sum is an output; a packed gate and up are halves
ROUNDED |= {"Where"}  # it chooses: attention's guard
ROUNDED |= {"AllReduce"}  # what the ranks send each other


def function(op: str, opset: int = 18) -> onnx.FunctionProto:
    definition = DEFINITIONS[op]
    attrs = {name: ATTRIBUTES[name] for name in definition.attributes if name in ATTRIBUTES}
    node = SimpleNamespace(inputs=(), attrs=attrs)
    uses = Uses(opset, [node])
    node.inputs = definition.inputs(uses) if callable(definition.inputs) else definition.inputs
    return definition.function(uses)


@pytest.mark.parametrize("low", [HALF, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("op", DEFINITIONS)
def test_bodies_take_and_give_the_low_type_and_compute_in_fp32(op, low):
    body, definition = function(op), DEFINITIONS[op]
    inputs = [FLOAT if name in definition.in_fp32 else low for name in body.input]
    types = body_types(body, inputs)
    assert {types[name] for name in body.output} == {low}
    rounding = {
        node.op_type
        for node in body.node
        for name in node.output
        if types[name] == low and name not in body.output
    }
    assert rounding <= ROUNDED
    # The same op, all in the low type: a plugin may be given such parameters too.
    assert {body_types(body, [low] * len(inputs))[name] for name in body.output} == {low}


@pytest.mark.parametrize("op", DEFINITIONS)
def test_bodies_keep_fp32_in_fp32(op):
    body = function(op)
    types = body_types(body, [FLOAT] * len(body.input))
    assert not {HALF, BF16} & set(types.values())


def test_a_body_that_mixes_types_is_refused():
    text = '<domain: "d", opset_import: ["" : 18]> f (x, y) => (z) { z = Add(x, y) }'
    body = onnx.parser.parse_function(text)
    assert body_types(body, [HALF, HALF])["z"] == HALF
    with pytest.raises(Clash, match="one type"):
        body_types(body, [HALF, FLOAT])
    with pytest.raises(Clash, match="does not take"):
        body_types(body, [TensorProto.BOOL, TensorProto.BOOL])


def test_an_operator_has_one_rule():
    groups = [set(PRODUCTS), set(IN_FP32), set(REDUCTIONS), set(EITHER)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert set().union(*groups) <= known
