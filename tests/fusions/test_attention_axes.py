"""FlashAttention over five axes: windows, as Hiera has them, and groups of query heads."""

from __future__ import annotations

import pytest

from tests.fusions.test_attention import PLAIN, attention

FIVE = PLAIN.replace("[0, 1, 3, 2]", "[0, 1, 2, 4, 3]")
MASKED = FIVE.replace(
    "weights = Softmax<axis=-1>(scores)", "m = Add(scores, mask)\nweights = Softmax<axis=-1>(m)"
)
WINDOWS = "T[B, 4, 3, 5, D] q, T[B, 4, 3, 7, D] k, T[B, 4, 3, 7, 8] v"
GROUPS = "T[B, 2, 3, Q, D] q, T[B, 2, 1, 7, D] k, T[B, 2, 1, 7, D] v"


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_windows_are_a_batch(dtype):
    outcome = attention(FIVE, qkv=WINDOWS, dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "num_heads") == 1
    outcome.same({"B": 2}, {"B": 1})


def test_one_key_head_serves_a_group():
    outcome = attention(FIVE, qkv=GROUPS)
    assert outcome.attribute("FlashAttention", "num_heads") == 6
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same({"B": 2, "Q": 5}, {"B": 1, "Q": 1})


@pytest.mark.parametrize("shape", ["5, 7", "1, 1, 5, 7", "1, 1, 1, 1, 7"])
def test_a_mask_of_all_windows(shape):
    outcome = attention(MASKED, f"T[{shape}] mask", qkv=WINDOWS)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2}, {"B": 1})


@pytest.mark.parametrize("shape", ["B, 4, 3, 5, 7", "B, 4, 3, 1, 7"])
def test_a_mask_of_each_window(shape):
    """LongT5 has positions and the ends of texts in one."""
    outcome = attention(MASKED, f"T[{shape}] mask", qkv=WINDOWS)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2}, {"B": 1})


@pytest.mark.parametrize("shape", ["1, 1, 3, 5, 7", "4, 1, 5, 7", "B, 1, 1, 5, 7"])
def test_a_mask_of_some_windows_is_refused(shape):
    outcome = attention(MASKED, f"T[{shape}] mask", qkv=WINDOWS)
    outcome.refused("FlashAttention", "y", "differs along axes of windows")
    outcome.same({"B": 2}, {"B": 1})


def test_a_mask_of_each_batch_beside_groups():
    outcome = attention(MASKED, "T[B, 1, 1, Q, 7] mask", qkv=GROUPS)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "Q": 5}, {"B": 1, "Q": 1})
