"""What onnxruntime's optimizer writes fuses as ours does, keeps its numbers, or says why not."""

from __future__ import annotations

import pytest

from tests.small import Outcome, fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})
X = "T[B, S, 8] x, T[B, S, 8] r"
VECTORS = dict.fromkeys(("gamma", "beta", "bias"), (8,))


def fused(text, inputs=X, outputs="T[B, S, 8] y", *, dtype="float", opset=18, **weights):
    text = text.replace("ms.", "com.microsoft.")
    return fuse_model(model(text, inputs, outputs, {**VECTORS, **weights}, dtype, opset))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("last", ["", ", beta", ", beta, bias", ", , bias"])
def test_skip_layer_norm(last, opset):
    outcome = fused(f"y = ms.SkipLayerNormalization<epsilon=1e-3>(x, r, gamma{last})", opset=opset)
    assert outcome.counts == {"AddLayerNorm": 1}
    assert outcome.attribute("AddLayerNorm", "epsilon") == pytest.approx(1e-3)
    outcome.same(*SIZES)


def test_the_sum_is_read_as_well():
    outcome = fused(
        "y, mean, deviation, s = ms.SkipLayerNormalization(x, r, gamma, beta, bias)",
        outputs="T[B, S, 8] y, T[B, S, 8] s",
    )
    assert outcome.counts == {"AddLayerNorm": 1}
    assert outcome.attribute("AddLayerNorm", "epsilon") == pytest.approx(1e-12)
    outcome.same(*SIZES)


def test_a_skip_for_all_of_the_batch_is_added():
    outcome = fused(
        "y = ms.SkipLayerNormalization(x, p, gamma, beta)", "T[B, S, 8] x, T[1, S, 8] p"
    )
    assert outcome.ops == ["Add", "LayerNormalization"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("last", ["", ", bias"])
def test_skip_rms_norm(last):
    outcome = fused(
        f"y, mean, deviation, s = ms.SkipSimplifiedLayerNormalization<epsilon=0.1>(x, r, g{last})",
        outputs="T[B, S, 8] y, T[B, S, 8] s",
        g=(8,),
    )
    assert outcome.counts == {"AddRmsNorm": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("axis", ["", "axis=2, ", "axis=-1, "])
@pytest.mark.parametrize("opset", [17, 18])
def test_rms_norm_of_the_default_domain(axis, opset):
    text = f"y = SimplifiedLayerNormalization<{axis}epsilon=0.01>(x, gamma)"
    outcome = fused(text, opset=opset)
    assert outcome.ops == ["RmsNorm"]
    assert outcome.attribute("RmsNorm", "epsilon") == pytest.approx(0.01)
    outcome.same(*SIZES)


ACTIVATIONS = {
    "gelu": "a = ms.Gelu(h)",
    "bias gelu": "a = ms.BiasGelu(h, bias)",
    "fast gelu": "a = ms.FastGelu(h)",
    "fast gelu and bias": "a = ms.FastGelu(h, bias)",
    "quick gelu": "a = ms.QuickGelu(h)",
    "silu": "a = ms.QuickGelu<alpha=1.0>(h)",
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations_become_epilogues(case):
    outcome = fused(f"h = MatMul(x, w)\n{ACTIVATIONS[case]}\ny = Neg(a)", w=(8, 8))
    assert outcome.counts == {"GemmAct": 1}
    outcome.same(*SIZES)


def test_a_gate_in_one_tensor():
    # BiasSplitGelu has no CPU kernel: what it becomes is compared with its definition in words.
    text = """
        h = Add(x, bias)
        a, b = Split<axis=-1, num_outputs=2>(h)
        g = ms.Gelu(b)
        y = Mul(a, g)
    """
    outcomes = [fused(t, outputs="T[B, S, 4] y") for t in ("y = ms.BiasSplitGelu(x, bias)", text)]
    for outcome in outcomes:
        assert outcome.counts == {"GatedAct": 1}
    Outcome(outcomes[1].before, outcomes[0].after, outcomes[0].fused).same(*SIZES)


@pytest.mark.parametrize("attributes", ["transB=1", "transB=1, alpha=0.25", "transA=1"])
def test_products(attributes):
    outcome = fused(f"y = ms.FusedMatMul<{attributes}>(x, r)", outputs="T[B, M, N] y")
    assert "FusedMatMul" not in outcome.ops
    assert outcome.ops.count("MatMul") == 1
    outcome.same(*SIZES)


def test_a_scaled_product_is_part_of_attention():
    outcome = fused(
        """
        s = ms.FusedMatMul<transB=1, alpha=0.5>(q, k)
        w = Softmax<axis=-1>(s)
        y = MatMul(w, v)
        """,
        "T[B, 2, S, 4] q, T[B, 2, S, 4] k, T[B, 2, S, 4] v",
        "T[B, 2, S, 4] y",
    )
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "scale") == pytest.approx(0.5)
    outcome.same(*SIZES)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "LeakyRelu"])
def test_gemm_with_an_activation(activation):
    slope = ", activation_alpha=0.3" if activation == "LeakyRelu" else ""
    outcome = fused(
        f'y = ms.FusedGemm<activation="{activation}"{slope}, transB=1>(x, w, c)',
        "T[S, 8] x",
        "T[S, 3] y",
        w=(3, 8),
        c=(3,),
    )
    assert "FusedGemm" not in outcome.ops
    assert outcome.counts == ({"GemmAct": 1} if activation == "Relu" else {})
    outcome.same({"S": 1}, {"S": 4})


EMBEDDING = {"words": (4, 8), "places": (9, 8), "kinds": (4, 8)}


@pytest.mark.parametrize("kinds", [True, False])
def test_embeddings(kinds):
    second, third = (", k", "kinds") if kinds else (", ", "")
    outcome = fused(
        f"y, none = ms.EmbedLayerNormalization<epsilon=0.01>(n{second}, words, places, {third}, "
        "gamma, beta)",
        "int32[B, S] n, int32[B, S] k",
        **EMBEDDING,
    )
    assert outcome.ops[-1] in ("AddLayerNorm", "LayerNormalization")
    outcome.same(*SIZES)


LEFT = {
    "an output": (
        "y, mean = ms.SkipLayerNormalization(x, r, gamma)",
        {"outputs": "T[B, S, 8] y, float[B, S, 1] mean"},
        "AddLayerNorm",
        "its output mean is needed",
    ),
    "an axis": (
        "y = SimplifiedLayerNormalization<axis=1>(x, wide)",
        {"wide": (5, 8)},
        "RmsNorm",
        "works along axis 1, want the last",
    ),
    "a batch that turns": (
        "y = ms.FusedMatMul<transBatchA=1>(x, r)",
        {},
        "GemmAct",
        "has transBatchA=1",
    ),
    "an activation": (
        'y = ms.FusedGemm<activation="Selu">(x, w)',
        {"inputs": "T[S, 8] x", "w": (8, 8)},
        "GemmAct",
        "has the activation 'Selu'",
    ),
    "an attribute": (
        "y = ms.BiasGelu<unheard=1>(x, bias)",
        {},
        "GemmAct",
        "has unheard=1",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_its_reason(case):
    text, options, kind, reason = LEFT[case]
    fused(text, **options).refused(kind, "y", reason)
