"""Attention whose masks come from positions, and whose keys lie in a cache."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tests.small import fuse_model, model

QKV = "T[B, 4, S, 8] q, T[B, 4, S, 8] k, T[B, 4, S, 8] v"
STEPS = """
    length1 = Shape<start=2, end=3>(q)
    length = Squeeze(length1)
    steps = Range(nought, length, single)
    row = Unsqueeze(steps, [1])
    column = Unsqueeze(steps, [0])
    causal = LessOrEqual(column, row)
    distance = Sub(column, row)
"""
CORE = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.35)
    {}
    weights = Softmax<axis=-1>(logits)
    y = MatMul(weights, v)
"""
NUMBERS = {"nought": np.array(0), "single": np.array(1), "two": np.array(2), "low": np.array(-2)}
ALIBI = """
    far = Cast<to=1>(distance)
    bias = Mul(far, slopes)
    biased = Add(scores, bias)
"""
SPELT = {
    "a sliding window": """
        first = Sub(row, two)
        near = Greater(column, first)
        seen = And(causal, near)
        logits = Where(seen, scores, -inf)
    """,
    "alibi": ALIBI + "logits = Identity(biased)",
    "alibi, and causal": ALIBI + "logits = Where(causal, biased, -inf)",
    "a table of distances": """
        above = Max(distance, low)
        near = Min(above, two)
        index = Add(near, two)
        rows = Gather<axis=0>(table, index)
        heads = Transpose<perm=[2, 0, 1]>(rows)
        bias = Unsqueeze(heads, [0])
        logits = Add(scores, bias)
    """,
}


@pytest.mark.parametrize("opset", [15, 18, 23])  # Shape has no axes before
@pytest.mark.parametrize("case", SPELT)
def test_it_fuses(case, opset):
    weights = NUMBERS | {"slopes": (4, 1, 1), "table": (5, 4)}
    text = STEPS + CORE.format(SPELT[case])
    outcome = fuse_model(model(text, QKV, weights=weights, opset=opset))
    assert outcome.counts == {"FlashAttention": 1}
    assert "Softmax" not in outcome.ops
    outcome.same({"B": 2, "S": 5}, {"B": 1, "S": 1})


CACHE = """
    k = TensorScatter<axis=2>(past_k, new_k, at)
    v = TensorScatter<axis=2>(past_v, new_v, at)
""" + CORE.format("logits = Add(scores, mask)")
TOO_OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 30)
writes_in_place = pytest.mark.skipif(TOO_OLD, reason="not run: no TensorScatter in onnxruntime")
PAST = "T[B, 4, 7, 8] past_k, T[B, 4, 7, 8] past_v, int64[B] at, T[B, 1, S, 7] mask"


@writes_in_place
def test_a_cache_that_is_written_in_place():
    inputs = f"T[B, 4, S, 8] q, T[B, 4, S, 8] new_k, T[B, 4, S, 8] new_v, {PAST}"
    outcome = fuse_model(model(CACHE, inputs, "T y, T k, T v", opset=24))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "S": 3}, {"B": 1, "S": 1})


@writes_in_place
def test_projections_into_such_a_cache_are_merged():
    heads = "".join(
        f"""
        {name}0 = MatMul(x, w{name})
        {name}1 = Reshape({name}0, [0, 0, 4, 8])
        {out} = Transpose<perm=[0, 2, 1, 3]>({name}1)
        """
        for name, out in (("q", "q"), ("k", "new_k"), ("v", "new_v"))
    )
    weights = {f"w{name}": (16, 32) for name in "qkv"}
    made = model(heads + CACHE, f"T[B, S, 16] x, {PAST}", "T y, T k, T v", weights, opset=24)
    outcome = fuse_model(made)
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same({"B": 2, "S": 3}, {"B": 1, "S": 1})


def test_keys_and_values_of_a_memory_are_merged():
    """Cross attention: q is projected from another tensor."""
    heads = "".join(
        f"""
        {name}0 = MatMul({source}, w{name})
        {name}1 = Reshape({name}0, [0, 0, 4, 8])
        {name} = Transpose<perm=[0, 2, 1, 3]>({name}1)
        """
        for name, source in (("q", "x"), ("k", "memory"), ("v", "memory"))
    )
    weights = {"wq": (16, 32), "wk": (12, 32), "wv": (12, 32)}
    text = heads + CORE.format("logits = Identity(scores)")
    outcome = fuse_model(model(text, "T[B, S, 16] x, T[B, M, 12] memory", "T y", weights))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    assert outcome.ops.count("MatMul") == 2
    outcome.same({"B": 2, "S": 3, "M": 5})
