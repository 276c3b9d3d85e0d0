"""Values that are widened to meet the probabilities, and several values of one softmax."""

from __future__ import annotations

import onnx
import pytest

import opfuse
from tests.small import fuse_model, model

QKV = "T[B, 4, S, 6] q, T[B, 4, L, 6] k, T[B, 4, L, 6] v"
SCORES = "kt = Transpose<perm=[0, 1, 3, 2]>(k)\ns = MatMul(q, kt)\n"
# torch.jit's scaled_dot_product_attention in fp16, with a mask in fp32.
WIDENED = f"""{SCORES}
    wide = Cast<to=1>(s)
    masked = Add(wide, mask)
    p = Softmax<axis=-1>(masked)
    values = Cast<to=1>(v)
"""
MASK = "float[B, 1, S, L] mask"
SIZES = ({"B": 2, "S": 5, "L": 3}, {"B": 1, "S": 1, "L": 4})


def widened(end: str, dtype: str = "float16", text: str = WIDENED):
    return model(text + end, f"{QKV}, {MASK}", "float y", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_that_are_widened_are_taken_as_they_were(tmp_path, dtype):
    made = widened("y = MatMul(p, values)", dtype)
    outcome = fuse_model(made)
    assert outcome.ops == ["FlashAttention", "Cast"]
    assert outcome.node("FlashAttention").input[:3] == ["q", "k", "v"]
    onnx.checker.check_model(outcome.after, full_check=True)
    onnx.save(made, tmp_path / "model.onnx")
    report = opfuse.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert report.counts["FlashAttention"] == 1


def test_heads_are_joined_before_the_result_is_widened():
    end = "heads = MatMul(p, values)\nt = Transpose<perm=[0, 2, 1, 3]>(heads)\ny = Neg(t)"
    assert fuse_model(widened(end)).ops == ["FlashAttention", "Transpose", "Cast", "Neg"]


def test_scores_that_are_wide_from_the_start_stay_wide():
    """Their product may be beyond the limit of fp16."""
    text = WIDENED.replace("s = MatMul(q, kt)", "wide = MatMul(q32, kt32)")
    text = text.replace("wide = Cast<to=1>(s)", "").replace("kt = ", "q32 = Cast<to=1>(q)\nkt = ")
    text = text.replace("wide = M", "kt32 = Cast<to=1>(kt)\nwide = M")
    outcome = fuse_model(widened("y = MatMul(p, values)", text=text))
    assert outcome.counts == {"FlashAttention": 1}
    assert "q" not in outcome.node("FlashAttention").input


TWO = f"{SCORES}p = Softmax<axis=-1>(s)\ny = MatMul(p, v)\n"


def test_two_values_of_one_softmax():
    """Differential attention (Ye et al. 2024), as torch exports it."""
    text = f"{TWO}z = MatMul(p, w)"
    outcome = fuse_model(model(text, f"{QKV}, T[B, 4, L, 6] w", "T y, T z"))
    assert outcome.ops == ["FlashAttention", "FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    "more",
    ["z = Relu(p)", "z = MatMul(w, p)", "z = Relu(s)", "z = MatMul(p, u)"],
    ids=["read otherwise", "on the other side", "scores", "other sizes"],
)
def test_probabilities_that_are_needed_are_not_computed_twice(more):
    outcome = fuse_model(model(TWO + more, f"{QKV}, T[B, 4, L, S] w, T[B, 4, L, 5] u", "T y, T z"))
    assert "FlashAttention" not in outcome.ops
    assert any("is also read by" in miss.reason for miss in outcome.fused.misses)
    outcome.same(*SIZES)
