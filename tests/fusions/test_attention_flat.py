"""FlashAttention over [batch * heads, positions, size]: split again if possible, else one head."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

FLAT = "T[N, Q, 6] q, T[N, K, 6] k, T[N, K, 6] v"
CORE = """
    kt = Transpose<perm=[0, 2, 1]>({k})
    raw = MatMul({q}, kt)
    scores = Mul(raw, 0.25)
    {mask}
    weights = Softmax<axis=-1>({logits})
    {y} = MatMul(weights, {v})
"""
SIZES = ({"N": 8, "Q": 5, "K": 5}, {"N": 1, "Q": 1, "K": 7}, {"N": 3, "Q": 4, "K": 1})
SPLIT = ({"B": 2, "Q": 5, "K": 5}, {"B": 1, "Q": 1, "K": 7}, {"B": 3, "Q": 4, "K": 1})


def core(mask="", q="q", k="k", v="v", y="y") -> str:
    logits = "logits" if mask else "scores"
    return CORE.format(mask=mask, logits=logits, q=q, k=k, v=v, y=y)


def attention(text, inputs="", *, qkv=FLAT, dtype="float", outputs="T y"):
    return fuse_model(model(text, ", ".join(filter(None, [qkv, inputs])), outputs, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_one_head_each(dtype):
    outcome = attention(core(), dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "num_heads") == 1
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["N, Q, K", "1, Q, K", "Q, K", "N, 1, K"])
def test_additive_masks(shape):
    outcome = attention(core("logits = Add(scores, mask)"), f"T[{shape}] mask")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["N, Q, K", "Q, K"])
def test_boolean_masks(shape):
    outcome = attention(core("logits = Where(keep, scores, -inf)"), f"bool[{shape}] keep")
    assert outcome.counts == {"FlashAttention": 1}
    keep = np.random.default_rng(2).integers(0, 2, (8, 5, 5)).astype(bool)
    outcome.same({"N": 8, "Q": 5, "K": 5}, keep=keep if shape.startswith("N") else keep[0])


def bloom(mask: str = "", heads: int = 4) -> str:
    """Flattens batch and heads before each product and splits them behind it, as BLOOM does."""
    text = ""
    for name in "qkv":
        text += f"""
            {name}s = Shape({name}4)
            {name}n = Slice({name}s, [2], [3], [0])
            {name}f = Concat<axis=0>([-1], {name}n, [6])
            {name} = Reshape({name}4, {name}f)
        """
    text += f"""
        kt = Transpose<perm=[0, 2, 1]>(k)
        raw = MatMul(q, kt)
        t4 = Concat<axis=0>([-1], [{heads}], qn, kn)
        raw4 = Reshape(raw, t4)
        scores = Mul(raw4, 0.25)
        {mask}
        weights4 = Softmax<axis=-1>({"logits" if mask else "scores"})
        t3 = Concat<axis=0>([-1], qn, kn)
        weights = Reshape(weights4, t3)
        y3 = MatMul(weights, v)
        ty = Concat<axis=0>([-1], [{heads}], qn, [6])
        y = Reshape(y3, ty)
    """
    return text


QKV4 = "T[B, 4, Q, 6] q4, T[B, 4, K, 6] k4, T[B, 4, K, 6] v4"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("mask", ["", "logits = Add(scores, mask)"])
def test_batch_and_heads_are_split_again(mask, dtype):
    inputs = "T[B, 1, Q, K] mask" if mask else ""
    outcome = attention(bloom(mask), inputs, qkv=QKV4, dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "num_heads") == 4
    assert "Reshape" not in outcome.ops
    outcome.same(*SPLIT)


def test_another_split_of_batch_and_heads_keeps_its_numbers():
    """[batch * 4] split as [batch * 2, 2]: the heads are not those that were flattened."""
    text = bloom().replace("[4], qn, [6]", "[2], qn, [6]")
    outcome = attention(text, qkv=QKV4)
    outcome.same(*SPLIT)


def test_heads_flattened_before_the_batch_keep_their_numbers():
    text = bloom()
    for name in "qkv":
        text = text.replace(f"Reshape({name}4,", f"Reshape({name}p,")
    turned = "".join(f"{n}p = Transpose<perm=[1, 0, 2, 3]>({n}4)\n" for n in "qkv")
    outcome = attention(turned + text, qkv=QKV4)
    outcome.same(*SPLIT)


@pytest.mark.parametrize("inner", ["raw", "weights"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = attention(core(), outputs=f"T y, T {inner}")
    outcome.refused("FlashAttention", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)
