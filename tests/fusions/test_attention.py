"""FlashAttention: softmax(scale q k^T + mask) v with masks, caps, guards, and islands."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

QKV = "T[B, 4, Q, D] q, T[B, 4, K, D] k, T[B, 4, K, D] v"
HEAD = "kt = Transpose<perm=[0, 1, 3, 2]>(k)\nraw = MatMul(q, kt)\nscores = Mul(raw, 0.25)\n"
TAIL = "weights = Softmax<axis=-1>(logits)\ny = MatMul(weights, v)\n"
PLAIN = HEAD + TAIL.replace("logits", "scores")
LOWEST = {"float": "-3.4028235e38", "float16": "-65504.0"}
SIZES = ({"B": 2, "Q": 5, "K": 5}, {"B": 1, "Q": 1, "K": 7}, {"B": 3, "Q": 4, "K": 1})


def attention(text, inputs="", *, qkv=QKV, dtype="float", size=6, outputs="T y", **weights):
    typed = ", ".join(filter(None, [qkv.replace("D]", f"{size}]"), inputs]))
    return fuse_model(model(text, typed, outputs, weights, dtype, 18))


def fully_masked(batch: int, queries: int, keys: int) -> np.ndarray:
    """Random visibility, the last query of the first batch seeing nothing."""
    keep = np.random.default_rng(3).integers(0, 2, (batch, 1, queries, keys)).astype(bool)
    keep[..., 0] = True
    keep[0, 0, -1] = False
    return keep


SCALES = {
    "none": "kt = Transpose<perm=[0, 1, 3, 2]>(k)\nscores = MatMul(q, kt)",
    "scores times": HEAD,
    "scores over": HEAD.replace("Mul(raw, 0.25)", "Div(raw, 4.0)"),
    "constant first": HEAD.replace("Mul(raw, 0.25)", "Mul(0.25, raw)"),
    "q times": "kt = Transpose<perm=[0, 1, 3, 2]>(k)\ns = Mul(q, 0.25)\nscores = MatMul(s, kt)",
    "q over": "kt = Transpose<perm=[0, 1, 3, 2]>(k)\ns = Div(q, 4.0)\nscores = MatMul(s, kt)",
    "both": """
        s = Mul(q, 0.5)
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        t = Mul(kt, 0.5)
        scores = MatMul(s, t)""",
    "k before its transpose": """
        t = Mul(k, 0.25)
        kt = Transpose<perm=[0, 1, 3, 2]>(t)
        scores = MatMul(q, kt)""",
}


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_fuses(scale):
    outcome = attention(SCALES[scale] + "\n" + TAIL.replace("logits", "scores"))
    assert outcome.counts == {"FlashAttention": 1}
    assert "Softmax" not in outcome.ops
    outcome.same(*SIZES)


@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_odd_head_sizes(size):
    outcome = attention(PLAIN, size=size)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "scale") == pytest.approx(0.25)
    outcome.same(*SIZES)


def test_fp16():
    outcome = attention(PLAIN, dtype="float16")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("cast_back", ["after softmax", "before product"])
def test_the_fp32_island_of_an_fp16_model(cast_back):
    text = (
        HEAD
        + """
        wide = Cast<to=1>(scores)
        weights = Softmax<axis=-1>(wide)
        narrow = Cast<to=10>(weights)
        y = MatMul(narrow, v)"""
    )
    if cast_back == "before product":
        text = text.replace(
            "narrow = Cast<to=10>(weights)",
            """
            zero = Constant<value_float=0.0>()
            undefined = IsNaN(weights)
            kept = Where(undefined, zero, weights)
            narrow = Cast<to=10>(kept)""",
        )
    outcome = attention(text, dtype="float16")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["B, 1, Q, K", "1, 1, Q, K", "B, 4, Q, K", "Q, K", "B, 1, 1, K"])
@pytest.mark.parametrize("add", ["Add(scores, mask)", "Add(mask, scores)"])
def test_additive_masks(shape, add):
    outcome = attention(HEAD + f"logits = {add}\n" + TAIL, f"T[{shape}] mask")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


def test_a_bias_and_a_mask():
    text = HEAD + "biased = Add(scores, bias)\nlogits = Add(biased, mask)\n" + TAIL
    outcome = attention(text, "T[1, 4, Q, K] bias, T[B, 1, 1, K] mask")
    assert outcome.ops == ["Add", "FlashAttention"]
    outcome.same(*SIZES)


def test_a_mask_computed_in_the_graph_has_the_type_of_the_island():
    text = (
        HEAD
        + "wide = Cast<to=1>(scores)\nlogits = Add(wide, mask)\n"
        + TAIL.replace(
            "y = MatMul(weights, v)", "narrow = Cast<to=10>(weights)\ny = MatMul(narrow, v)"
        )
    )
    outcome = attention(text, "float[B, 1, Q, K] mask", dtype="float16")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


def where(order: str, fill: str, guarded: bool = False) -> str:
    choice = f"{order}, scores, {fill}" if order == "keep" else f"{order}, {fill}, scores"
    tail = TAIL
    if guarded:
        tail = tail.replace(
            "y = MatMul(weights, v)",
            """
            undefined = IsNaN(weights)
            kept = Where(undefined, 0.0, weights)
            y = MatMul(kept, v)""",
        )
    return HEAD + f"logits = Where({choice})\n" + tail


@pytest.mark.parametrize("fill", ["-inf", "lowest", "-1.0e9", "-65504.0"])
@pytest.mark.parametrize("order", ["keep", "drop"])
def test_boolean_masks_with_a_fully_masked_row(order, fill):
    text = where(order, LOWEST["float"] if fill == "lowest" else fill)
    outcome = attention(text, f"bool[B, 1, Q, K] {order}")
    assert outcome.counts == {"FlashAttention": 1}
    keep = fully_masked(2, 5, 5)
    feeds = {order: keep if order == "keep" else ~keep}
    outcome.same({"B": 2, "Q": 5, "K": 5}, **feeds)


@pytest.mark.parametrize("fill", ["-inf", "-65504.0"])
def test_boolean_masks_in_fp16(fill):
    outcome = attention(where("keep", fill), "bool[B, 1, Q, K] keep", dtype="float16")
    assert outcome.counts == {"FlashAttention": 1}
    keep = fully_masked(2, 5, 5)
    keep[0, 0, -1, 1] = True
    outcome.same({"B": 2, "Q": 5, "K": 5}, keep=keep)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_nan_guard_gives_zeros_for_a_fully_masked_row(dtype):
    outcome = attention(where("keep", "-inf", True), "bool[B, 1, Q, K] keep", dtype=dtype)
    assert outcome.ops == ["Where", "FlashAttention"]
    assert outcome.attribute("FlashAttention", "nan_guard") == 1
    outcome.same({"B": 2, "Q": 5, "K": 5}, keep=fully_masked(2, 5, 5))


@pytest.mark.parametrize(
    "bend",
    [
        "ratio = Div(scores, 3.0)\nbent = Tanh(ratio)\nlogits = Mul(bent, 3.0)\n",
        "ratio = Mul(scores, 0.25)\nbent = Tanh(ratio)\nlogits = Mul(4.0, bent)\n",
    ],
)
def test_soft_caps(bend):
    outcome = attention(HEAD + bend + TAIL)
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


def test_a_soft_cap_before_the_mask():
    bend = "ratio = Div(scores, 3.0)\nbent = Tanh(ratio)\ncapped = Mul(bent, 3.0)\n"
    text = HEAD + bend + "logits = Add(capped, mask)\n" + TAIL
    outcome = attention(text, "T[B, 1, Q, K] mask")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


def test_masks_and_none_in_one_model():
    text = PLAIN + HEAD.replace("kt", "kt2").replace("raw", "raw2").replace("scores", "scores2")
    text += "l2 = Add(scores2, mask)\nw2 = Softmax<axis=-1>(l2)\nz = MatMul(w2, v)"
    outcome = attention(
        text.replace("MatMul(q, kt2)", "MatMul(v, kt2)"),
        "T[B, 1, K, K] mask",
        outputs="T y, T z",
    )
    assert outcome.counts == {"FlashAttention": 2}
    outcome.same({"B": 2, "Q": 5, "K": 5}, {"B": 1, "Q": 1, "K": 3})


def test_k_straight_from_its_projection():
    text = PLAIN.replace("[0, 1, 3, 2]>(k)", "[0, 2, 3, 1]>(k)")
    outcome = attention(text, qkv="T[B, 4, Q, D] q, T[B, K, 4, D] k, T[B, 4, K, D] v")
    assert outcome.ops == ["Transpose", "FlashAttention"]
    outcome.same(*SIZES)


def test_k_that_comes_transposed():
    text = PLAIN.split("\n", 1)[1].replace("kt", "k")
    outcome = attention(text, qkv="T[B, 4, Q, D] q, T[B, 4, 6, K] k, T[B, 4, K, D] v")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


def test_another_size_of_v():
    outcome = attention(PLAIN, qkv="T[B, 4, Q, D] q, T[B, 4, K, D] k, T[B, 4, K, 9] v")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


def test_one_key_value_head_serves_all():
    outcome = attention(PLAIN, qkv="T[B, 4, Q, 6] q, T[B, 1, K, 6] k, T[B, 1, K, 6] v")
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 1
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["C, 1, Q, K", "B, 1, Q, L", "M, N"])
def test_a_mask_with_symbols_of_its_own(shape):
    """Exporters name the mask's sizes apart from the scores'; where they differ nothing runs."""
    masked = PLAIN.replace("weights = Softmax", "l = Add(scores, mask)\nweights = Softmax")
    outcome = attention(masked.replace("(scores)", "(l)"), f"T[{shape}] mask")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "Q": 5, "K": 3, "C": 2, "L": 3, "M": 5, "N": 3})


@pytest.mark.parametrize("fill", ["-65504.0", "-60001.0"])
def test_fp16_masked_with_a_finite_number(fill):
    """-65504 does not absorb a score of fp16, so the mask is in fp32: a row of it is uniform."""
    text = PLAIN.replace("weights = Softmax", f"l = Where(keep, scores, {fill})\nweights = Softmax")
    outcome = attention(text.replace("(scores)", "(l)"), "bool[B, 1, Q, K] keep", dtype="float16")
    assert outcome.counts == {"FlashAttention": 1}
    keep = fully_masked(2, 5, 6)
    wide = np.random.default_rng(1).normal(0, 8, (2, 4, 5, 6)).astype(np.float16)
    outcome.same({"B": 2, "Q": 5, "K": 6}, keep=keep, q=wide)
