"""Attention with sinks fuses: a score of each head that no key has."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import Outcome, fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})
QKV = "T[B, 4, S, 8] q, T[B, 4, S, 8] k, T[B, 4, S, 8] v"
MASKS = "T[B, 1, S, S] mask, bool[B, 1, 1, S] keep"
SCORES = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.35)
"""
SINKS = """
    own = Reshape(sinks, [1, 4, 1, 1])
    batch = Shape<start=0, end=1>(q)
    queries = Shape<start=2, end=3>(q)
    target = Concat<axis=0>(batch, [4], queries, [1])
    column = Expand(own, target)
    joined = Concat<axis=-1>(logits, column)
"""
BEHIND = """
    top = ReduceMax(joined, [-1])
    less = Sub(joined, top)
    odds = Softmax<axis=-1>(less)
    weights = Slice(odds, [0], [-1], [-1])
    y = MatMul(weights, v)
"""
ADDED = "logits = Add(scores, mask)\n"


def attention(
    masked=ADDED, behind=BEHIND, before="", dtype="float", qkv=QKV, sinks=SINKS
) -> Outcome:
    text = before + SCORES + masked + sinks + behind
    return fuse_model(model(text, f"{qkv}, {MASKS}", weights={"sinks": (4,)}, dtype=dtype))


MASKED = {
    "nothing": "logits = Identity(scores)\n",
    "added": ADDED,
    "chosen": "logits = Where(keep, scores, -inf)\n",
}


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("masked", MASKED)
def test_it_fuses(masked, dtype):
    outcome = attention(MASKED[masked], dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1}
    assert "Softmax" not in outcome.ops
    outcome.same(*SIZES)


def test_the_maximum_may_stay():
    behind = BEHIND.replace("Softmax<axis=-1>(less)", "Softmax<axis=3>(joined)")
    outcome = attention(behind=behind)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


def test_a_row_that_sees_no_key_gives_all_to_the_sink():
    outcome = attention(MASKED["chosen"].replace("-inf", "-3.4028234663852886e38"))
    keep = np.ones((2, 1, 1, 5), bool)
    keep[0] = False
    outcome.same(SIZES[0], keep=keep)


def test_grouped_heads():
    before = "".join(
        f"{x}5 = Unsqueeze({x}0, [2])\n{x}e = Expand({x}5, [1, 1, 2, 1, 1])\n"
        f"{x} = Reshape({x}e, [0, 4, -1, 8])\n"
        for x in "kv"
    )
    qkv = "T[B, 4, S, 8] q, T[B, 2, S, 8] k0, T[B, 2, S, 8] v0"
    outcome = attention(before=before, qkv=qkv)
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


REFUSED = {
    "the first dropped": "[1], [9223372036854775807], [-1]",
    "two dropped": "[0], [-2], [-1]",
    "every second": "[0], [-1], [-1], [2]",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    qkv = QKV if case == "the first dropped" else QKV.replace("S, 8] v", "W, 8] v")
    outcome = attention(behind=BEHIND.replace("[0], [-1], [-1]", REFUSED[case]), qkv=qkv)
    outcome.refused("FlashAttention", "weights", "does not take the probabilities of all keys")
    outcome.same({"B": 2, "S": 5, "W": 4 if case == "two dropped" else 3})


def test_two_columns_are_refused():
    sinks = SINKS.replace("(batch, [4], queries, [1])", "(batch, [4], queries, [2])")
    behind = BEHIND.replace("[0], [-1], [-1]", "[0], [-2], [-1]")
    outcome = attention(behind=behind, sinks=sinks)
    outcome.refused("FlashAttention", "y", "want one column")
    outcome.same(*SIZES)
