"""bfloat16, which NumPy lacks: what is fused passes the checker, and its constants keep their bits.

onnxruntime has no bfloat16 kernels on the CPU, so the numbers are the prover's to judge.
"""

from __future__ import annotations

import ml_dtypes
import onnx
import pytest
from onnx import TensorProto

from tests.fusions.spellings import GELU, spell
from tests.small import fuse_model, model

QKV = """
    {n}0 = MatMul(x, w{n})
    {add}
    {n}4 = Reshape({s}, [0, -1, 2, 3])
    {n} = Transpose<perm={perm}>({n}4)
"""
ATTENTION = "raw = MatMul(q, k)\nweights = Softmax<axis=-1>(raw)\ny = MatMul(weights, v)\n"


def project(name: str, biased: bool) -> str:
    perm = "[0, 2, 3, 1]" if name == "k" else "[0, 2, 1, 3]"
    add = f"{name}1 = Add({name}0, b{name})" if biased else ""
    return QKV.format(n=name, add=add, s=f"{name}{int(biased)}", perm=perm)


def fused(text: str, inputs: str, outputs="T y", opset=18, **weights):
    used = {name: shape for name, shape in weights.items() if name in text}
    outcome = fuse_model(model(text, inputs, outputs, used, "bfloat16", opset))
    onnx.checker.check_model(outcome.after, full_check=True)
    read = {name for node in outcome.after.graph.node for name in node.input}
    floats = [t for t in outcome.after.graph.initializer if t.data_type != TensorProto.INT64]
    assert {t.data_type for t in floats if t.name in read} <= {TensorProto.BFLOAT16}
    return outcome


def values(outcome, name: str):
    (found,) = [t for t in outcome.after.graph.initializer if t.name == name]
    return onnx.numpy_helper.to_array(found).astype("float32")


@pytest.mark.parametrize("biased", ["", "q", "kv", "qkv"])
def test_the_qkv_merge(biased):
    text = "".join(project(name, name in biased) for name in "qkv") + ATTENTION
    shapes = {f"w{name}": (5, 6) for name in "qkv"} | {f"b{name}": (6,) for name in "qkv"}
    outcome = fused(text, "T[B, S, 5] x", **shapes)
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    matmul = outcome.node("MatMul")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in outcome.before.graph.initializer}
    merged = values(outcome, matmul.input[1])
    for index, name in enumerate("qkv"):
        want = before[f"w{name}"].astype("float32")
        assert (merged[:, 6 * index : 6 * index + 6] == want).all()


def test_linear_layers_with_and_without_bias():
    text = "h0 = MatMul(x, w)\nh = Add(h0, b)\ny = Relu(h)\ng = MatMul(x, v)\nz = Relu(g)"
    outcome = fused(text, "T[S, 5] x", "T y, T z", w=(5, 7), b=(7,), v=(5, 3))
    assert outcome.counts == {"GemmAct": 2}
    assert {len(node.input) for node in outcome.after.graph.node} == {3}


def test_a_linear_layer_that_turns_its_weight():
    outcome = fused("h = Gemm<transB=1>(x, w, b)\ny = Relu(h)", "T[S, 5] x", w=(7, 5), b=(7,))
    assert outcome.counts == {"GemmAct": 1}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in outcome.before.graph.initializer}
    have = values(outcome, outcome.node("GemmAct").input[1])
    assert (have == before["w"].astype("float32").T).all()


def test_attention_with_and_without_a_mask():
    text = "".join(project(name, False) for name in "qkv") + ATTENTION
    text += "m = Add(raw2, mask)\nw2 = Softmax<axis=-1>(m)\nz = MatMul(w2, v)"
    text = text.replace("m = Add", "raw2 = MatMul(v, k)\nm = Add")
    shapes = {f"w{name}": (5, 6) for name in "qkv"}
    outcome = fused(text, "T[B, S, 5] x, T[B, 1, S, S] mask", "T y, T z", **shapes)
    assert outcome.counts["FlashAttention"] == 2


def test_the_standard_attention_with_a_boolean_mask():
    inputs = "T[B, 4, S, 6] q, T[B, 4, S, 6] k, T[B, 4, S, 6] v, bool[B, 1, S, S] mask"
    outcome = fused("y = Attention(q, k, v, mask)", inputs, opset=23)
    assert outcome.counts == {"FlashAttention": 1}


def test_gate_and_up():
    text = """
        gate = MatMul(x, wg)
        up = MatMul(x, wu)
        s = Sigmoid(gate)
        a = Mul(gate, s)
        y = Mul(a, up)
    """
    outcome = fused(text, "T[S, 5] x", wg=(5, 7), wu=(5, 7))
    assert outcome.counts == {"GatedAct": 1, "gate_up_merge": 1}


def test_norms():
    text = "sum = Add(x, r)\ny = LayerNormalization(sum, gamma, beta)"
    outcome = fused(text, "T[S, 8] x, T[S, 8] r", gamma=(8,), beta=(8,))
    assert outcome.counts == {"AddLayerNorm": 1}


def test_scalars_are_known():
    """A scale, an epsilon, and GELU's constants are rounded to 8 bits and still recognised."""
    text = "kt = Transpose<perm=[0, 1, 3, 2]>(k)\nraw = MatMul(q, kt)\nscores = Mul(raw, 0.25)\n"
    text += "weights = Softmax<axis=-1>(scores)\ny = MatMul(weights, v)"
    outcome = fused(text, "T[B, 2, S, 3] q, T[B, 2, S, 3] k, T[B, 2, S, 3] v")
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "scale") == pytest.approx(0.25)
    text = "a = MatMul(x, w)\n" + spell(GELU["product then half"], "a", "y")
    assert fused(text, "T[B, 5] x", w=(5, 4)).counts == {"GemmAct": 1}


def test_what_an_attribute_holds_keeps_its_type(capfd):
    """onnx-graphsurgeon makes float32 of it where it is asked for the values, and says so."""
    made = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (int64[2] s, int64[a] n) => (bfloat16[a] y, bfloat16[b, c] z) {
        w = ConstantOfShape(s)
        y = CastLike(n, w)
        again = ConstantOfShape(s)
        z = Add(w, again)
        }"""
    )
    third = onnx.helper.make_tensor("third", TensorProto.BFLOAT16, [1], [1 / 3])
    for node in (made.graph.node[0], made.graph.node[2]):
        node.attribute.append(onnx.helper.make_attribute("value", third))
    outcome = fuse_model(made)
    onnx.checker.check_model(outcome.after, full_check=True)
    assert sorted(outcome.ops) == ["Add", "Cast", "ConstantOfShape"]
    assert outcome.attribute("Cast", "to") == TensorProto.BFLOAT16
    held = outcome.attribute("ConstantOfShape", "value")
    assert held.data_type == TensorProto.BFLOAT16
    assert onnx.numpy_helper.to_array(held) == onnx.numpy_helper.to_array(third)
    assert "BFLOAT16" not in "".join(capfd.readouterr())


def test_scores_that_are_clamped_to_the_lowest_number():
    """XGLM does; only -inf in the mask is below it."""
    text = """
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        raw = MatMul(q, kt)
        added = Add(raw, mask)
        logits = Max(added, lowest)
        weights = Softmax<axis=-1>(logits)
        y = MatMul(weights, v)
    """
    inputs = ", ".join(f"T[B, 4, S, 8] {name}" for name in "qkv") + ", T[B, 1, S, S] mask"
    lowest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).min)
    outcome = fuse_model(model(text, inputs, "T y", {"lowest": lowest}, "bfloat16"))
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.ops == ["Max", "FlashAttention"]


def test_a_packed_bias_that_is_split():
    """WavLM's attention has one of q, k, and v."""
    text = "b1, b2, b3 = Split<axis=0>(bias, [7, 7, 7])\nh0 = MatMul(x, w)\nh = Add(h0, b2)\n"
    outcome = fused(f"{text}y = Relu(h)", "T[S, 5] x", w=(5, 7), bias=(21,))
    assert outcome.counts == {"GemmAct": 1}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in outcome.before.graph.initializer}
    have = values(outcome, outcome.node("GemmAct").input[2])
    assert (have == before["bias"].astype("float32")[7:14]).all()
