"""Several masks over one attention: rows that they mask together give what the original gave."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from tests.small import Outcome, compare, draw, fuse_model, model

SIZES = {"B": 2, "S": 4}
QKV = "T[B, 4, S, 8] q, T[B, 4, S, 8] k, T[B, 4, S, 8] v"
MASKS = "T[B, 1, 1, S] padding, bool[S, S] keep, T[1, 4, S, S] position"
LOWEST = {"float": "-3.4028234663852886e38", "float16": "-65504.0"}


def attention(text: str, dtype: str = "float", extra: str = "", opset: int = 18) -> Outcome:
    body = f"""
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        raw = MatMul(q, kt)
        scores = Mul(raw, 0.35)
        {text}
        weights = Softmax<axis=-1>(logits)
        y = MatMul(weights, v)
    """
    return fuse_model(model(body, f"{QKV}, {MASKS}{extra}", dtype=dtype, opset=opset))


def hidden(dtype: str, low: float) -> dict[str, np.ndarray]:
    """Masks under which rows see nothing: by ``keep`` alone, and by both together."""
    keep = np.tril(np.ones((4, 4), bool))
    keep[3] = False
    kind = np.float16 if dtype == "float16" else np.float32
    padding = np.zeros((2, 1, 1, 4), kind)
    padding[0, ..., 0] = low
    return {"keep": keep, "padding": padding}


SPELT = {
    "chosen beside a bias": "biased = Add(scores, padding)\nlogits = Where(keep, biased, LOW)",
    "added to what was chosen": "chosen = Where(keep, scores, LOW)\nlogits = Add(chosen, padding)",
    "a bias, chosen, and added": """
        biased = Add(scores, position)
        chosen = Where(keep, biased, LOW)
        logits = Add(padding, chosen)
    """,
}


@pytest.mark.parametrize("dtype", LOWEST)
@pytest.mark.parametrize("spelt", SPELT)
def test_rows_that_two_masks_hide_together(spelt, dtype):
    """In fp16 the sums are rounded, which onnxruntime does not do on a CPU."""
    outcome = attention(SPELT[spelt].replace("LOW", LOWEST[dtype]), dtype)
    assert outcome.counts == {"FlashAttention": 1}
    feeds = draw(outcome.before, SIZES, 0) | hidden(dtype, float(LOWEST[dtype]))
    want, have = (
        ReferenceEvaluator(made).run(None, feeds)[0] for made in (outcome.before, outcome.after)
    )
    compare("y", want, have)


@pytest.mark.parametrize("dtype", LOWEST)
def test_minus_infinity_beside_a_bias(dtype):
    outcome = attention(SPELT["chosen beside a bias"].replace("LOW", "-inf"), dtype)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(SIZES, **hidden(dtype, float(LOWEST[dtype])))


@pytest.mark.parametrize("low", [-1e30, -3.38953e38, -3.4028234663852886e38, -1e9])
@pytest.mark.parametrize("fill", ["-1.0e30", "-3.38953e38"])
@pytest.mark.parametrize("spelt", SPELT)
def test_a_fill_in_which_scores_are_lost(spelt, fill, low):
    """MPT fills fp32 scores with the lowest number of bfloat16."""
    outcome = attention(SPELT[spelt].replace("LOW", fill))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(SIZES, **hidden("float", low))


@pytest.mark.parametrize("spelt", SPELT)
def test_a_fill_that_another_mask_may_be_below_is_refused(spelt):
    """A row masked in part by -1e9 and in part by the fill weighs both alike."""
    outcome = attention(SPELT[spelt].replace("LOW", "-1.0e9"))
    assert not outcome.counts.get("FlashAttention")
    said = [miss.reason for miss in outcome.fused.misses if miss.kind == "FlashAttention"]
    assert said == ["masks with -1e+09 beside another mask, which may be lower"]
    outcome.same(SIZES, **hidden("float", -1e9))


def test_three_masks_added_one_by_one():
    text = """
        biased = Add(scores, position)
        padded = Add(biased, padding)
        logits = Add(padded, extra)
    """
    outcome = attention(text, extra=", T[S, S] extra")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(SIZES)


@pytest.mark.parametrize("low", ["-1.0e9", "-inf", LOWEST["float"]])
@pytest.mark.parametrize("inner", ["Where(keep, scores, LOW)", "Where(hide, LOW, scores)"])
@pytest.mark.parametrize("outer", ["Where(also, inner, LOW)", "Where(gone, LOW, inner)"])
def test_a_choice_of_a_choice_is_one(inner, outer, low):
    text = f"""
        hide = Not(keep)
        gone = Not(also)
        inner = {inner}
        logits = {outer}
    """
    outcome = attention(text.replace("LOW", low), extra=", bool[B, 1, 1, S] also")
    assert outcome.counts == {"FlashAttention": 1}
    also = np.ones((2, 1, 1, 4), bool)
    also[0, ..., :2] = False
    outcome.same(SIZES, also=also, **hidden("float", 0))


def test_scores_that_were_masked_before_are_refused():
    """What MaskedSoftmax takes for scores holds a fill of its own."""
    text = """
        first = Where(keep, scores, -1.0e9)
        capped = Max(first, -1.0e9)
        logits = Where(also, capped, -1.0e9)
    """
    outcome = attention(text, extra=", bool[B, 1, 1, S] also")
    assert outcome.counts == {}
    outcome.same(SIZES, also=np.arange(8).reshape(2, 1, 1, 4) % 4 > 1, **hidden("float", 0))


def test_the_reason_for_scores_that_were_masked_before():
    text = """
        first = Where(keep, scores, -1.0e9)
        capped = Max(first, -1.0e9)
        logits = Where(also, capped, -1.0e9)
        y = Softmax<axis=-1>(logits)
    """
    inputs = "T[B, 4, S, S] scores, bool[S, S] keep, bool[B, 1, 1, S] also"
    outcome = fuse_model(model(text, inputs))
    outcome.refused("MaskedSoftmax", "logits", "what Max may have masked before")
    outcome.same(SIZES, keep=np.tril(np.ones((4, 4), bool), -1))


@pytest.mark.parametrize("scaled", ["Mul(first, 0.5)", "Mul(0.5, first)", "Div(first, 2.0)"])
def test_scores_that_were_masked_before_they_were_scaled(scaled):
    text = f"""
        first = Where(keep, scores, -1.0e9)
        half = {scaled}
        logits = Where(also, half, -1.0e9)
        y = Softmax<axis=-1>(logits)
    """
    inputs = "T[B, 4, S, S] scores, bool[S, S] keep, bool[B, 1, 1, S] also"
    outcome = fuse_model(model(text, inputs))
    outcome.refused("MaskedSoftmax", "logits", "what Where may have masked before")
    outcome.same(SIZES, keep=np.tril(np.ones((4, 4), bool), -1))


def test_a_product_of_another_kind_masks_nothing():
    text = """
        raw = Einsum<equation="bhqd,bhkd->bhqk">(q, k)
        logits = Where(keep, raw, -1.0e9)
        y = Softmax<axis=-1>(logits)
    """
    outcome = fuse_model(model(text, f"{QKV}, bool[S, S] keep"))
    assert outcome.counts == {"MaskedSoftmax": 1}
    outcome.same(SIZES, keep=np.tril(np.ones((4, 4), bool)))
