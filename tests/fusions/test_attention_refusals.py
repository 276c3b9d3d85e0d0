"""FlashAttention: near-misses are refused with the node that blocks them."""

from __future__ import annotations

import pytest

from tests.fusions.test_attention import HEAD, PLAIN, QKV, SIZES, TAIL, attention, where
from tests.small import fuse_model, model

MASKED = HEAD + "logits = Add(scores, mask)\n" + TAIL
CAPPED = HEAD + "ratio = Div(scores, 3.0)\nbent = Tanh(ratio)\nlogits = Mul(bent, {})\n" + TAIL


@pytest.mark.parametrize(
    ("text", "node", "reason"),
    [
        (PLAIN.replace("axis=-1", "axis=2"), "weights", "works along axis 2, want the last of 4"),
        (CAPPED.format("5.0"), "logits", "divides by 3 before tanh and multiplies by 5"),
        (CAPPED.format("-3.0"), "logits", "divides by 3 before tanh and multiplies by -3"),
        (PLAIN.replace("0.25", "0.0"), "raw", "the scale is 0"),
        (PLAIN.replace("0.25", "-3.4028235e38"), "raw", "the scale is -3.4"),
        (PLAIN.replace("Mul(raw, 0.25)", "Div(raw, 0.0)"), "raw", "the scale is inf"),
        (CAPPED.replace("scores, 3.0", "scores, 0.0").format("3.0"), "logits", "divides by 0"),
    ],
)
def test_refused_with_its_reason(text, node, reason):
    outcome = attention(text)
    outcome.refused("FlashAttention", node, reason)
    outcome.same(*SIZES)


@pytest.mark.parametrize("fill", ["-10000.0", "0.0", "-100.0"])
def test_a_fill_that_scores_may_reach_is_refused(fill):
    outcome = attention(where("keep", fill), "bool[B, 1, Q, K] keep")
    outcome.refused("FlashAttention", "logits", "which scores may reach")
    outcome.same(*SIZES)


def test_a_guard_that_writes_ones_is_refused():
    outcome = attention(where("keep", "-inf", True).replace("0.0, w", "1.0, w"), "bool[Q, K] keep")
    outcome.refused("FlashAttention", "kept", "its NaN guard writes something but 0")
    outcome.same(*SIZES)


def test_a_guard_of_other_weights_is_refused():
    text = where("keep", "-inf", True).replace("IsNaN(weights)", "IsNaN(other)")
    outcome = attention(text, "bool[Q, K] keep, T[B, 4, Q, K] other")
    assert outcome.counts == {"MaskedSoftmax": 1}


def test_a_mask_of_another_rank_is_refused():
    outcome = attention(MASKED, "T[1, B, 1, Q, K] mask")
    outcome.refused("FlashAttention", "logits", "which does not provably broadcast to the scores'")


def test_a_mask_that_makes_a_batch_is_refused():
    """One q for many masks: the result has the mask's batch, which the fused op cannot give."""
    qkv = "T[1, 4, Q, D] q, T[1, 4, K, D] k, T[1, 4, K, D] v"
    outcome = attention(MASKED, "T[B, 1, Q, K] mask", qkv=qkv)
    outcome.refused("FlashAttention", "logits", "mask mask is (B, 1, Q, K)")
    outcome.same(*SIZES)


def test_a_computed_mask_names_the_node_that_makes_it():
    text = "mask = Neg(hidden)\n" + MASKED
    outcome = attention(text, "T[1, B, 1, Q, K] hidden")
    outcome.refused("FlashAttention", "mask", "mask mask is (1, B, 1, Q, K)")


@pytest.mark.parametrize("inner", ["raw", "scores", "weights"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = attention(PLAIN, outputs=f"T y, T {inner}")
    outcome.refused("FlashAttention", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_weights_that_are_read_elsewhere_are_refused():
    outcome = attention(PLAIN + "z = Neg(weights)", outputs="T y, T z")
    outcome.refused("FlashAttention", "z", "weights inside it is also read by z")
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["4, 1, K", "4, Q, 1", "1"])
def test_a_factor_that_is_no_scale_of_each_head_is_refused(shape):
    text = HEAD.replace("0.25", "each") + TAIL.replace("logits", "scores")
    outcome = attention(text, f"T[{shape}] each")
    outcome.refused("FlashAttention", "scores", "no scale of each head")
    outcome.same(*SIZES)


def test_other_ranks_are_refused():
    text = PLAIN.replace("[0, 1, 3, 2]", "[1, 0]").replace("B, 4, ", "")
    outcome = attention(text, qkv=QKV.replace("B, 4, ", ""))
    outcome.refused("FlashAttention", "raw", "have ranks 2, 2, 2, want 4")


def test_several_sizes_that_are_no_numbers_are_refused_over_five_axes():
    text = PLAIN.replace("[0, 1, 3, 2]", "[0, 1, 2, 4, 3]")
    outcome = attention(text, qkv=QKV.replace("[B", "[1, B"))
    outcome.refused("FlashAttention", "y", "has more than one size that is no number")
    outcome.same(*SIZES)


def test_a_number_beside_a_symbol_is_refused_over_five_axes():
    """Of one batch, the symbol is a broadcast: the result has the other's size."""
    swapped = "turned = Transpose<perm=[1, 0, 2, 3, 4]>(k)\n"
    text = swapped + PLAIN.replace("(k)", "(turned)").replace("[0, 1, 3, 2]", "[0, 1, 2, 4, 3]")
    qkv = "T[B, 3, 4, 5, 6] q, T[B, 3, 4, 7, 6] k, T[B, 3, 4, 7, 8] v"
    outcome = attention(text, qkv=qkv)
    outcome.refused("FlashAttention", "raw", "do not agree")
    outcome.same({"B": 1}, {"B": 3})


def test_an_unknown_number_of_heads_is_refused():
    outcome = attention(PLAIN, qkv=QKV.replace("4", "H"))
    outcome.refused("FlashAttention", "raw", "the number of heads is H, want a number")


def test_one_key_head_but_several_of_values_is_refused():
    outcome = attention(PLAIN, qkv="T[B, 4, Q, 6] q, T[B, 1, K, 6] k, T[B, 4, K, 6] v")
    outcome.refused("FlashAttention", "raw", "do not agree")
    outcome.same(*SIZES)


def test_one_batch_of_keys_that_is_broadcast_is_refused():
    outcome = attention(PLAIN, qkv="T[B, 4, Q, D] q, T[1, 4, K, D] k, T[1, 4, K, D] v")
    outcome.refused("FlashAttention", "raw", "do not agree")
    outcome.same(*SIZES)


def test_without_the_transpose_it_is_another_product():
    text = PLAIN.split("\n", 1)[1].replace("kt", "k")
    outcome = attention(text, qkv="T[B, 4, Q, 6] q, T[B, 4, 6, 6] k, T[B, 4, 6, 6] v")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("place", ["scores", "weights"])
def test_a_cast_that_truncates_is_refused(place):
    truncated = f"whole = Cast<to=7>({place})\nback = Cast<to=1>(whole)\n"
    head, tail = PLAIN.split("weights =")
    if place == "scores":
        text = head + truncated + "weights =" + tail.replace("(scores)", "(back)")
    else:
        lines = tail.split("\n", 1)
        text = (
            head + "weights =" + lines[0] + "\n" + truncated + lines[1].replace("weights", "back")
        )
    outcome = attention(text)
    outcome.refused("FlashAttention", "whole", "casts to another type")
    outcome.same(*SIZES)


def test_mixed_types_are_refused():
    text = PLAIN.replace("y = MatMul(weights, v)", "n = Cast<to=10>(weights)\ny = MatMul(n, v)")
    qkv = QKV.replace("T[B, 4, K, D] v", "float16[B, 4, K, D] v")
    outcome = attention(text, qkv=qkv, outputs="float16 y")
    outcome.refused("FlashAttention", "y", "q, kt, v differ in type")


def test_fp64_is_refused():
    attention(PLAIN, dtype="double").refused("FlashAttention", "y", "neither fp32, fp16, nor bf16")


def test_weights_that_leave_behind_a_cast_are_refused():
    """Keeping the Cast would keep the softmax in front of it, and compute all of it twice."""
    head, tail = PLAIN.split("weights =")
    text = head + "wide = Cast<to=1>(scores)\nweights =" + tail.replace("(scores)", "(wide)")
    text = text.replace("y = MatMul(weights, v)", "n = Cast<to=10>(weights)\ny = MatMul(n, v)")
    outcome = attention(text, dtype="float16", outputs="T y, T n")
    outcome.refused("FlashAttention", "n", "n inside it leaves the graph")
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [("C, 1, Q, K", {"C": 3}), ("B, 1, R, K", {"R": 4}), ("C, 1, R, K", {"C": 2, "R": 3})],
)
def test_a_mask_that_turns_out_to_enlarge_the_scores_keeps_its_numbers(shape, sizes):
    """Symbols of its own may stand for more than the scores' 1; the definition widens as well."""
    outcome = attention(MASKED, f"T[{shape}] mask")
    outcome.same({"B": 1, "Q": 1, "K": 5, **sizes})


def test_scores_that_mask_themselves_are_refused():
    """The product would have to be kept beside the fused node that computes it again."""
    outcome = attention(HEAD + "logits = Add(scores, scores)\n" + TAIL)
    outcome.refused("FlashAttention", "scores", "scores inside it is also one of its operands")
    outcome.same(*SIZES)


def test_a_product_of_positions_is_no_candidate():
    """Positions [B, Q, 1], cast, times frequencies: MatMul and Cast, but no Softmax."""
    text = "spread = Unsqueeze(ids, [2])\nwide = Cast<to=1>(spread)\ny = MatMul(wide, frequencies)"
    outcome = fuse_model(model(text, "int64[B, Q] ids", weights={"frequencies": (1, 1, 4)}))
    assert outcome.fused.misses == ()
