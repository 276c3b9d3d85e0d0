"""Plugins that have other kernels for what they read are others to a table."""

from __future__ import annotations

import onnx
import pytest

from opfuse.engine.kinds import has_convolution, kinds
from opfuse.engine.tensors import types_of

MODEL = """
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
g ({type}[b,8,s,{size}] q, {type}[b,s,{packed}] qkv, {type}[s,64] x)
    => ({type}[b,8,s,{size}] y, {type}[b,s,8,{size}] z, {type}[s,64] n) {{
    y = opfuse.FlashAttention(q, q, q)
    z = opfuse.PackedAttention(qkv)
    n = opfuse.RmsNorm(x, x)
}}
"""


@pytest.mark.parametrize(
    ("element", "size", "attention", "norm"),
    [
        ("float16", 64, None, None),
        ("bfloat16", 256, None, None),
        ("float16", 512, "large heads", None),
        ("float", 64, "fp32", "fp32"),
        ("float", 512, "fp32", "fp32"),
        ("float16", "d", None, None),
    ],
)
def test_fp32_and_large_heads_are_unusual(element, size, attention, norm):
    packed = "w" if size == "d" else 24 * size
    model = onnx.parser.parse_model(MODEL.format(type=element, size=size, packed=packed))
    found = kinds(model.graph.node, types_of(model))
    wanted = {"FlashAttention": attention, "PackedAttention": attention, "RmsNorm": norm}
    assert found == {op: kind for op, kind in wanted.items() if kind}


@pytest.mark.parametrize(
    ("depth", "columns", "kind"),
    [(768, 3072, None), (768, 2, "unaligned"), (770, 8, "unaligned"), ("d", "c", None)],
)
def test_products_whose_rows_are_no_whole_vectors_are_unusual(depth, columns, kind):
    text = f"""
        <ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
        g (float16[s,{depth}] x, float16[{depth},{columns}] w) => (float16[s,{columns}] y) {{
            y = opfuse.GemmAct(x, w)
        }}
    """
    model = onnx.parser.parse_model(text)
    found = kinds(model.graph.node, types_of(model))
    assert found == ({"GemmAct": kind} if kind else {})


def test_products_beside_convolutions_are_unusual():
    nodes = [onnx.helper.make_node(op, ["x", "w"], ["y"]) for op in ("GemmAct", "RmsNorm")]
    assert not has_convolution(nodes)
    assert has_convolution([*nodes, onnx.helper.make_node("Conv", ["y", "w"], ["z"])])
    assert kinds(nodes, {}) == {}
    assert kinds(nodes, {}, convolved=True) == {"GemmAct": "beside convolutions"}
