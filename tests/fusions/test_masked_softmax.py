"""MaskedSoftmax: what stays of an attention fuses, near-misses say why, and the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 5, "L": 3}, {"B": 1, "S": 1, "L": 4}, {"B": 3, "S": 4, "L": 4})
QK = "T[B, 2, S, 4] q, T[B, 2, 4, L] k"
MASK = "T[B, 1, S, L] mask"
KEEP = "bool[B, 1, S, L] keep"
START = "scores = MatMul(q, k)\n"
END = "y = Softmax<axis=-1>(logits)\n"
SCALED = "scaled = Mul(scores, 0.5)\n"


def softmax(text, inputs=f"{QK}, {MASK}", outputs="T y", *, dtype="float", opset=18, **weights):
    return fuse_model(model(START + text, inputs, outputs, weights, dtype, opset))


SPELT = {
    "mask": ("logits = Add(scores, mask)\n", MASK),
    "times": (f"{SCALED}logits = Add(scaled, mask)\n", MASK),
    "over": ("scaled = Div(scores, 2.0)\nlogits = Add(mask, scaled)\n", MASK),
    "bias and mask": (
        f"{SCALED}biased = Add(scaled, bias)\nlogits = Add(biased, mask)\n",
        f"{MASK}, T[1, 2, S, L] bias",
    ),
    "kept": (f"{SCALED}logits = Where(keep, scaled, -inf)\n", KEEP),
    "kept with a bias": (
        f"{SCALED}biased = Add(scaled, bias)\nlogits = Where(keep, biased, -inf)\n",
        f"{KEEP}, T[1, 2, S, L] bias",
    ),
    "dropped": (
        f"{SCALED}drop = Not(keep)\nlogits = Where(drop, -3.0e38, scaled)\n",
        KEEP,
    ),
    "taken away": (
        f"{SCALED}drop = Not(keep)\nhidden = Cast<to=1>(drop)\n"
        "far = Mul(hidden, 1.0e30)\nlogits = Sub(scaled, far)\n",
        KEEP,
    ),
    "taken away by a number in front": (
        f"{SCALED}far = Mul(65500.0, mask)\nlogits = Sub(scaled, far)\n",
        MASK,
    ),
    "scale alone": ("logits = Mul(scores, 0.5)\n", "T[B] other"),
}


@pytest.mark.parametrize("opset", [13, 18, 23])
@pytest.mark.parametrize("case", SPELT)
def test_every_spelling_fuses(case, opset):
    text, inputs = SPELT[case]
    outcome = softmax(text + END, f"{QK}, {inputs}", opset=opset)
    assert outcome.counts == {"MaskedSoftmax": 1}
    assert "Softmax" not in outcome.ops
    want = 1.0 if case == "mask" else 0.5
    assert outcome.attribute("MaskedSoftmax", "scale") == pytest.approx(want)
    outcome.same(*SIZES)


def test_a_mask_that_is_taken_away_in_bfloat16():
    text = f"{SCALED}far = Mul(mask, 1.0e30)\nlogits = Sub(scaled, far)\n{END}"
    outcome = softmax(text, dtype="bfloat16")
    assert "MaskedSoftmax" in outcome.ops
    assert "Sub" not in outcome.ops


@pytest.mark.parametrize("end", ["y = Relu(logits)", f"{END}z = Relu(logits)"], ids=["no", "both"])
def test_what_is_taken_from_no_scores_stays(end):
    """Large numbers are taken away elsewhere too, such as the middle of a range of pixels."""
    text = f"{SCALED}far = Mul(mask, 5000.0)\nlogits = Sub(scaled, far)\n{end}"
    outputs = "T y, T z" if "z =" in end else "T y"
    outcome = softmax(text, outputs=outputs)
    assert "Sub" in outcome.ops
    outcome.same(*SIZES)


def test_what_hides_nothing_is_not_taken_away():
    outcome = softmax(f"{SCALED}half = Mul(mask, 0.5)\nlogits = Sub(scaled, half)\n{END}")
    assert "Sub" in outcome.ops
    outcome.same(*SIZES)


def test_probabilities_that_leave_the_graph():
    text = f"{SCALED}logits = Add(scaled, mask)\n{END}z = MatMul(y, v)"
    outcome = softmax(text, f"{QK}, {MASK}, T[B, 2, L, 4] v", "T y, T z")
    assert outcome.counts == {"MaskedSoftmax": 1}
    assert outcome.ops == ["MatMul", "MaskedSoftmax", "MatMul"]
    outcome.same(*SIZES)


def test_whole_attention_comes_first():
    text = f"{SCALED}logits = Add(scaled, mask)\n{END.replace('y', 'w')}y = MatMul(w, v)"
    outcome = softmax(text, f"{QK}, {MASK}, T[B, 2, L, 4] v")
    assert outcome.counts == {"FlashAttention": 1}


def test_the_fp32_island_of_an_fp16_model():
    text = f"""{SCALED}sum = Add(scaled, mask)
        logits = Cast<to=1>(sum)
        wide = Softmax<axis=3>(logits)
        y = Cast<to=10>(wide)"""
    outcome = softmax(text, dtype="float16")
    assert outcome.ops == ["MatMul", "MaskedSoftmax"]
    outcome.same(*SIZES)


def test_heads_flattened_into_the_batch():
    outcome = softmax(
        f"logits = Add(scores, mask)\n{END}", "T[N, S, 4] q, T[N, 4, L] k, T[N, S, L] mask"
    )
    assert outcome.ops == ["MatMul", "MaskedSoftmax"]
    outcome.same({"N": 6, "S": 5, "L": 3})


def test_with_and_without_a_mask_in_one_model():
    text = f"""{SCALED}logits = Add(scaled, mask)
        {END}
        others = Mul(scores, 0.25)
        z = Softmax<axis=-1>(others)"""
    outcome = softmax(text, outputs="T y, T z")
    assert outcome.counts == {"MaskedSoftmax": 2}
    outcome.same(*SIZES)


@pytest.mark.parametrize("fill", ["-inf", "-1.0e9"])
def test_a_row_that_sees_nothing(fill):
    outcome = softmax(f"{SCALED}logits = Where(keep, scaled, {fill})\n{END}", f"{QK}, {KEEP}")
    assert outcome.counts == {"MaskedSoftmax": 1}
    keep = np.ones((2, 1, 3, 4), bool)
    keep[0, 0, 1] = False
    outcome.same({"B": 2, "S": 3, "L": 4}, keep=keep)


REFUSED = {
    "axis": (
        f"logits = Add(scores, mask)\n{END.replace('-1', '2')}",
        MASK,
        "y",
        "works along axis 2, want the last of 4",
    ),
    "a mask that enlarges": (
        f"logits = Add(scores, mask)\n{END}",
        "T[3, B, 2, S, L] mask",
        "logits",
        "does not provably broadcast",
    ),
    "a fill that scores may reach": (
        f"logits = Where(keep, scores, -10.0)\n{END}",
        KEEP,
        "logits",
        "masks with -10, which scores may reach",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, inputs, node, reason = REFUSED[case]
    outcome = softmax(text, f"{QK}, {inputs}")
    outcome.refused("MaskedSoftmax", node, reason)
    outcome.same(*SIZES)


def test_a_graph_output_inside_is_refused():
    outcome = softmax(f"{SCALED}logits = Add(scaled, mask)\n{END}", outputs="T y, T logits")
    outcome.refused("MaskedSoftmax", "logits", "logits inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    text = f"{SCALED}logits = Add(scaled, mask)\n{END}z = Neg(logits)"
    outcome = softmax(text, outputs="T y, T z")
    outcome.refused("MaskedSoftmax", "z", "logits inside it is also read by z")
    outcome.same(*SIZES)


@pytest.mark.parametrize("elsewhere", ["T scaled", ""])
def test_a_scale_that_is_not_one_number_or_read_elsewhere_stays_in_front(elsewhere):
    text = SCALED if elsewhere else "scaled = Mul(scores, factors)\n"
    outputs = ", ".join(filter(None, ["T y", elsewhere]))
    factors = np.array([[[0.5]], [[2.0]]], np.float32)
    outcome = softmax(f"{text}logits = Add(scaled, mask)\n{END}", outputs=outputs, factors=factors)
    assert outcome.ops == ["MatMul", "Mul", "MaskedSoftmax"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    "text",
    [
        "y = Softmax<axis=-1>(scores)",
        "h = Add(scores, bias)\ny = Softmax<axis=-1>(h)",
        "h = Relu(scores)\ni = Mul(h, 0.5)\ny = Softmax<axis=-1>(i)",
    ],
)
def test_no_attention_is_left_alone(text):
    outcome = softmax(text, "T[B, S, 4] q, T[4, 3] k", bias=(3,))
    assert not outcome.counts.get("MaskedSoftmax")
    assert not [miss for miss in outcome.fused.misses if miss.kind == "MaskedSoftmax"]
    outcome.same({"B": 2, "S": 5})
