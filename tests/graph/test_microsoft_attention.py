"""onnxruntime's attention operators fuse as ours do, keep their numbers, or say why not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})
QKV = "T[B, S, 8] q, T[B, S, 8] k, T[B, S, 8] v"


def fused(text, inputs=QKV, outputs="T[B, S, 8] y", *, opset=18, **weights):
    text = text.replace("ms.", "com.microsoft.")
    return fuse_model(model(text, inputs, outputs, weights, "float", opset))


def attends(outcome, count=1):
    assert outcome.counts["FlashAttention"] == count, outcome.ops
    assert not outcome.fused.misses, outcome.fused.misses
    return outcome


MASKS = {
    "none": ("", ""),
    "keys": (", , m", "int32[B, S] m"),
    "queries and keys": (", , m", "int32[B, S, S] m"),
    "lengths": (", , m", "int32[B] m"),
    "bias": (", , , a", "T[B, 2, S, S] a"),
    "one bias for all": (", , , a", "T[1, 1, S, S] a"),
    "both": (", , m, a", "int32[B, S] m, T[1, 2, S, S] a"),
}
FLAGS = ("", ", unidirectional=1", ", scale=0.3", ", mask_filter_value=-50.0")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("case", MASKS)
def test_multi_head_attention(case, flag):
    operands, inputs = MASKS[case]
    outcome = fused(
        f"y = ms.MultiHeadAttention<num_heads=2{flag}>(q, k, v{operands})",
        f"{QKV}, {inputs}".rstrip(", "),
    )
    attends(outcome).same(*SIZES)


def test_a_bias_of_the_projections():
    text = "y = ms.MultiHeadAttention<num_heads=2>(q, k, v, b)"
    attends(fused(text, b=(24,))).same(*SIZES)


def test_projections_are_merged():
    outcome = fused(
        """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        y = ms.MultiHeadAttention<num_heads=2>(q, k, v, b)
        """,
        "T[B, S, 6] x",
        **dict.fromkeys(("wq", "wk", "wv"), (6, 8)),
        b=(24,),
    )
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)


def test_cross_attention_with_values_of_another_size():
    outcome = fused(
        "y = ms.MultiHeadAttention<num_heads=2>(q, k, v)",
        "T[B, S, 8] q, T[B, L, 8] k, T[B, L, 12] v",
        "T[B, S, 12] y",
    )
    attends(outcome).same({"B": 2, "S": 3, "L": 5}, {"B": 1, "S": 1, "L": 4})


def test_keys_that_have_heads_already():
    outcome = fused(
        "y = ms.MultiHeadAttention<num_heads=2>(q, k, v)",
        "T[B, S, 8] q, T[B, 2, L, 4] k, T[B, 2, L, 4] v",
    )
    attends(outcome).same({"B": 2, "S": 3, "L": 5}, {"B": 1, "S": 1, "L": 4})


@pytest.mark.parametrize("flag", ["", ", unidirectional=1"])
def test_a_cache(flag):
    outcome = fused(
        f"y, nk, nv = ms.MultiHeadAttention<num_heads=2{flag}>(q, k, v, b, , , pk, pv)",
        f"{QKV}, T[B, 2, P, 4] pk, T[B, 2, P, 4] pv",
        "T[B, S, 8] y, T[B, 2, N, 4] nk, T[B, 2, N, 4] nv",
        b=(24,),
    )
    attends(outcome).same({"B": 2, "S": 3, "P": 5}, {"B": 1, "S": 1, "P": 4})


PACKED = {name: MASKS[name] for name in ("none", "keys", "queries and keys", "lengths")}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("case", PACKED)
def test_attention_with_packed_weights(case, flag):
    operands, inputs = PACKED[case]
    outcome = fused(
        f"y = ms.Attention<num_heads=2{flag}>(x, w, b{operands.replace(', ,', ',')})",
        f"T[B, S, 6] x, {inputs}".rstrip(", "),
        w=(6, 24),
        b=(24,),
    )
    attends(outcome).same(*SIZES)


def test_attention_with_a_cache():
    outcome = fused(
        "y, new = ms.Attention<num_heads=2, unidirectional=1>(x, w, b, m, past)",
        "T[B, S, 6] x, T[2, B, 2, P, 4] past, int32[B, U] m",
        "T[B, S, 8] y, T[2, B, 2, N, 4] new",
        w=(6, 24),
        b=(24,),
    )
    outcome = attends(outcome)
    outcome.same({"B": 2, "S": 3, "P": 5, "U": 8}, {"B": 1, "S": 1, "P": 4, "U": 5})


def test_attention_with_values_of_another_size():
    outcome = fused(
        "y = ms.Attention<num_heads=2, qkv_hidden_sizes=[8, 8, 4]>(x, w, b)",
        "T[B, S, 6] x",
        "T[B, S, 4] y",
        w=(6, 20),
        b=(20,),
    )
    attends(outcome).same(*SIZES)


def test_a_row_that_sees_nothing():
    outcome = fused("y = ms.MultiHeadAttention<num_heads=2>(q, k, v, , m)", f"{QKV}, int32[B, S] m")
    attends(outcome).same({"B": 2, "S": 3}, m=np.array([[0, 0, 0], [1, 1, 0]], np.int32))


ROTARY = {
    "halves": ("", "T[B, 3, S, 8] x", (9, 4)),
    "pairs": ("<interleaved=1>", "T[B, 3, S, 8] x", (9, 4)),
    "a part": ("<rotary_embedding_dim=4, num_heads=3>", "T[B, 3, S, 8] x", (9, 2)),
    "flat": ("", "T[B, S, 24] x", (9, 4)),
    "flat, with heads": ("<num_heads=3>", "T[B, S, 24] x", (9, 4)),
}


@pytest.mark.parametrize("positions", ["int64[B, S] p", "int64[1] p"])
@pytest.mark.parametrize("case", ROTARY)
def test_rotary_embedding(case, positions):
    attributes, x, cache = ROTARY[case]
    outcome = fused(
        f"y = ms.RotaryEmbedding{attributes}(x, p, c, s)",
        f"{x}, {positions}",
        x.replace(" x", " y"),
        c=cache,
        s=cache,
    )
    assert outcome.counts == {"Rope": 1}
    sizes = {"B": 2, "S": 5}, {"B": 1, "S": 1}
    outcome.same(*sizes)


LEFT = {
    "packed q, k, v": (
        "y = ms.MultiHeadAttention<num_heads=2>(p)",
        {"inputs": "T[B, S, 2, 3, 4] p"},
        "FlashAttention",
        "input 1 is absent",
    ),
    "rotation inside": (
        "y = ms.Attention<num_heads=2, do_rotary=1>(x, w)",
        {"inputs": "T[B, S, 6] x", "w": (6, 24)},
        "FlashAttention",
        "has do_rotary=1",
    ),
    "unknown lengths": (
        "y = ms.MultiHeadAttention<num_heads=2>(q, k, v, , m)",
        {"inputs": f"{QKV}, int32[N] m"},
        "FlashAttention",
        "mask m is (N), want lengths for batch B",
    ),
    "a mask that stands for none": (
        "y = ms.Attention<num_heads=2>(x, w, , m)",
        {"inputs": "T[B, S, 6] x, int32[1, 1] m", "w": (6, 24)},
        "FlashAttention",
        "mask m is of 1 keys, want S",
    ),
    "scores": (
        "y, nk, nv, scores = ms.MultiHeadAttention<num_heads=2>(q, k, v)",
        {"outputs": "T[B, S, 8] y, T[B, 2, S, S] scores"},
        "FlashAttention",
        "its output scores is needed",
    ),
    "causal over other keys": (
        "y = ms.MultiHeadAttention<num_heads=2, unidirectional=1>(q, k, v)",
        {"inputs": QKV.replace("S, 8] q", "Q, 8] q"), "outputs": "T[B, Q, 8] y"},
        "FlashAttention",
        "is causal with Q queries and S keys",
    ),
    "values of another size in a cache": (
        "y, new = ms.Attention<num_heads=2, qkv_hidden_sizes=[8, 8, 4]>(x, w)",
        {"inputs": "T[B, S, 6] x", "outputs": "T[B, S, 4] y, T[2, B, 2, S, 4] new", "w": (6, 20)},
        "FlashAttention",
        "joins keys of 8 and values of 4 to one cache",
    ),
    "ragged": (
        "y = ms.RotaryEmbedding<is_packed_batching=1>(x, p, c, s)",
        {"inputs": "T[B, 3, S, 8] x, int64[B, S] p", "c": (9, 4), "s": (9, 4)},
        "Rope",
        "has is_packed_batching=1",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_its_reason(case):
    text, options, kind, reason = LEFT[case]
    fused(text, **options).refused(kind, "y", reason)
