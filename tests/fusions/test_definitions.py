"""The definitions of fused ops are valid and equal at every opset, whatever features nodes use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from opfuse.fusions import DEFINITIONS
from opfuse.graph.definition import Uses
from opfuse.numerics.alone import stand_in
from tests.small import compare, draw, fuse_model, model, session

OPSETS = (17, 18, 20, 21, 23)
X = "float[2, 5, 6]"
QKV = "float[2, 4, 5, 6] q, float[2, 2, 5, 6] k, float[2, 2, 5, 6] v"
HEADS_ALONE = "num_heads = 4, kv_num_heads = 2, scale = 0.4"
HEADS = HEADS_ALONE + ', layout = "BHSD"'
PACKED = "interleaved = 0, rotary_dim = 6, head_size = 0, num_heads = 4, kv_num_heads = 2"
PACKED_MORE = PACKED.replace(
    "= 0, rotary_dim = 6, head_size = 0", "= 1, rotary_dim = 4, head_size = 6"
)
PACKED += ", norm = 0, bias = 0, epsilon = 0.0"
PACKED_MORE += ", norm = 1, bias = 1, epsilon = 0.01"
CASES = {
    "rms": (f"{X} x, float[6] g", "y = opfuse.RmsNorm<epsilon = 0.01>(x, g)"),
    "add rms": (f"{X} x, {X} r, float[6] g", "y, s = opfuse.AddRmsNorm<epsilon = 0.01>(x, r, g)"),
    "add layer": (
        f"{X} x, {X} r, float[6] g, float[6] b",
        "y, s = opfuse.AddLayerNorm<epsilon = 0.01>(x, r, g, b)",
    ),
    **{
        f"{norm} over ranks": (
            f"{X} x, {X} r, float[6] g, float[6] b{', float[6] c' * (norm == 'layer')}",
            f'y, s = opfuse.AllReduceAddNorm<epsilon = 0.01, norm = "{norm}", group_size = 2>'
            f"(x, r, g, b{', c' * (norm == 'layer')})",
        )
        for norm in ("rms", "layer")
    },
    "group norm": (
        "float[2, 6, 5] x, float[6] g, float[6] b",
        "y = opfuse.GroupNormSilu<num_groups = 2, epsilon = 0.01>(x, g, b)",
    ),
    "halves": (
        f"{X} x, {X} c, {X} s",
        "y = opfuse.Rope<interleaved = 0, rotary_dim = 6, num_heads = 0>(x, c, s)",
    ),
    "neighbours": (
        f"{X} x, {X} c, {X} s",
        "y = opfuse.Rope<interleaved = 1, rotary_dim = 6, num_heads = 0>(x, c, s)",
    ),
    "a part of a head": (
        f"{X} x, float[5, 4] c, float[2, 1, 4] s",
        "y = opfuse.Rope<interleaved = 0, rotary_dim = 4, head_size = 6>(x, c, s)",
    ),
    "packed heads": (
        "float[2, 5, 48] x, float[5, 6] c, float[5, 6] s",
        f"y, k, v = opfuse.QkNormRope<{PACKED}>(x, c, s)",
    ),
    "packed heads, everything": (
        "float[2, 5, 48] x, float[5, 4] c, float[5, 4] s, float[6] g, float[6] h, float[48] b",
        f"y, k, v = opfuse.QkNormRope<{PACKED_MORE}>(x, c, s, g, h, b)",
    ),
    "attention": (
        QKV,
        f"y = opfuse.FlashAttention<{HEADS}, causal = 0, softcap = 0.0, nan_guard = 0>(q, k, v)",
    ),
    "everything": (
        f"{QKV}, float[2, 1, 5, 5] m",
        f"y = opfuse.FlashAttention<{HEADS}, causal = 1, softcap = 2.0, nan_guard = 1>(q, k, v, m)",
    ),
    "lengths": (
        f"{QKV}, int32[2] n",
        f"y = opfuse.FlashAttention<{HEADS}, causal = 0, window = 0, softcap = 0.0, "
        "nan_guard = 1, lengths = 1>(q, k, v, n)",
    ),
    "lengths, everything": (
        f"{QKV}, float[2, 1, 5, 5] m, float[4] s, int32[2] n",
        f"y = opfuse.FlashAttention<{HEADS}, causal = 1, window = 3, softcap = 2.0, "
        "nan_guard = 1, slopes = 1, lengths = 1>(q, k, v, m, s, n)",
    ),
    "rows that see no key": (
        f"{QKV}, float[2, 1, 5, 5] m",
        f"y = opfuse.FlashAttention<{HEADS}, causal = 0, softcap = 0.0, nan_guard = 2>(q, k, v, m)",
    ),
    "lengths that do not count": (
        f"{QKV}, int32[1] n",
        f"y = opfuse.FlashAttention<{HEADS}, causal = 1, softcap = 0.0, "
        "nan_guard = 1, lengths = 2>(q, k, v, n)",
    ),
    "packed, lengths": (
        "float[2, 5, 48] x, float[2, 1, 5, 5] m, int32[2] n",
        f"y = opfuse.PackedAttention<{HEADS_ALONE}, causal = 1, softcap = 0.0, nan_guard = 1, "
        "lengths = 1>(x, m, n)",
    ),
    "gated product": (
        "float[2, 5, 4] x, float[4, 12] w, float[12] b",
        'y = opfuse.GatedGemm<activation = "silu">(x, w, b)',
    ),
    "by position": (
        "float[2, 5, 4, 6] q, float[2, 2, 5, 6] k, float[2, 5, 2, 6] v",
        f"y = opfuse.FlashAttention<{HEADS_ALONE}, causal = 1, window = 2, softcap = 0.0, "
        'nan_guard = 0, layout = "BSHD,BHSD,BSHD,BSHD">(q, k, v)',
    ),
    "packed attention": (
        "float[2, 5, 48] x",
        f"y = opfuse.PackedAttention<{HEADS_ALONE}, causal = 0, softcap = 0.0, nan_guard = 0>(x)",
    ),
    "packed, masked": (
        "float[2, 5, 48] x, float[2, 1, 5, 5] m",
        f"y = opfuse.PackedAttention<{HEADS_ALONE}, causal = 1, window = 3, softcap = 2.0, "
        "nan_guard = 1>(x, m)",
    ),
    "softmax": (f"{X} s", "y = opfuse.MaskedSoftmax<scale = 0.5, causal = 0>(s)"),
    "masked softmax": (
        f"{X} s, float[5, 6] m",
        "y = opfuse.MaskedSoftmax<scale = 0.5, causal = 1>(s, m)",
    ),
    **{
        f"{activation} {inputs}": (
            f"{X} g, {X} u" if inputs == "apart" else f"{X} g",
            f'y = opfuse.GatedAct<activation = "{activation}">'
            + ("(g, u)" if inputs == "apart" else "(g)"),
        )
        for activation in ("silu", "gelu", "gelu_tanh")
        for inputs in ("apart", "packed")
    },
    **{
        f"gemm {activation}": (
            f"{X} x, float[6, 3] w, float[3] b",
            f'y = opfuse.GemmAct<activation = "{activation}">(x, w, b)',
        )
        for activation in ("none", "relu", "silu", "gelu", "gelu_tanh", "quick_gelu")
    },
}


class Call(NamedTuple):
    inputs: list[str]
    attrs: dict[str, object]


def called(name: str, opset: int) -> onnx.ModelProto:
    """A model of one call with its definition at ``opset``."""
    inputs, text = CASES[name]
    heads = "q," in inputs or "QkNormRope" in text or "PackedAttention" in text
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "opfuse" : 1]>\n'
        f"g ({inputs}) => (float[A, B, C{', D' if heads else ''}] y) {{ {text} }}"
    )
    (node,) = made.graph.node

    call = Call(list(node.input), {a.name: _value(a) for a in node.attribute})
    made.functions.append(DEFINITIONS[node.op_type].function(Uses(opset, [call])))
    node.attribute.append(helper.make_attribute("plugin_namespace", "opfuse"))
    stand_in(made)
    return made


def _value(attribute: onnx.AttributeProto) -> object:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("name", CASES)
def test_every_opset_gives_the_same(name):
    drawn = draw(called(name, 18), {}, 0)
    results = {}
    for opset in OPSETS:
        made = called(name, opset)
        onnx.checker.check_model(made, full_check=True)
        (results[opset],) = session(made).run(None, drawn)
    for opset in OPSETS:
        compare(f"opset {opset}", results[18], results[opset])


def test_every_definition_is_tried():
    assert {called(name, 18).graph.node[0].op_type for name in CASES} == DEFINITIONS.keys()


ATTENTION = """
    {n}t = Transpose<perm=[0, 1, 3, 2]>(k)
    {n}r = MatMul({q}, {n}t)
    {n}s = Mul({n}r, {scale})
    {bend}
    {n}w = Softmax<axis=-1>({n}l)
    {guard}
    {n} = MatMul({n}g, v)
"""
BENDS = {
    "plain": "{n}l = Identity({n}s)",
    "capped": "{n}d = Div({n}s, 2.0)\n{n}b = Tanh({n}d)\n{n}l = Mul({n}b, 2.0)",
    "masked": "{n}l = Where(keep, {n}s, -inf)",
}
GUARDS = {
    False: "{n}g = Identity({n}w)",
    True: "{n}u = IsNaN({n}w)\n{n}g = Where({n}u, 0.0, {n}w)",
}


def test_nodes_with_different_features_share_one_definition():
    text, outputs = "", []
    for number, (bend, guard) in enumerate((b, g) for b in BENDS for g in GUARDS):
        name = f"y{number}"
        parts = {"bend": BENDS[bend], "guard": GUARDS[guard]}
        text += ATTENTION.format(n="{n}", q="q", scale=f"0.{number + 1}", **parts).replace(
            "{n}", name
        )
        outputs.append(f"T {name}")
    qkv = "T[B, 2, S, 6] q, T[B, 2, S, 6] k, T[B, 2, S, 6] v, bool[B, 1, S, S] keep"
    text = text.replace("MatMul(q,", "MatMul(q_,")
    for number in range(len(outputs)):  # products of their own, which equal ones would share
        text = text.replace("q_,", f"q{number},", 1)
        text = f"q{number} = Add(q, {number}.5)\n" + text
    outcome = fuse_model(model(text, qkv, ", ".join(outputs)))
    assert outcome.counts == {"FlashAttention": len(outputs)}
    keep = np.ones((2, 1, 5, 5), bool)
    keep[0, 0, 3] = False
    outcome.same({"B": 2, "S": 5}, keep=keep)
