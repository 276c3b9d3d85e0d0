"""What is computed with flattened axes is computed with them apart, and once."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

FLAT = """
    q3 = Reshape(q, {flat})
    k3 = Reshape(k, {flat})
    v3 = Reshape(v, {flat})
    kt = Transpose<perm=[0, 2, 1]>(k3)
    s = MatMul(q3, kt)
    p = Softmax<axis=-1>(s)
    y3 = MatMul(p, v3)
    shape = Shape(q)
    y = Reshape(y3, shape)
"""
QKV = ", ".join(f"T[B, 4, S, 8] {name}" for name in "qkv")
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})


def attention(more: str = "", outputs: str = "T y"):
    """The flattened shape is that of the queries: [B * 4, S, 8]."""
    rows = "whole = Shape(q)\nrows = Slice(whole, [2], [4])\nflat = Concat<axis=0>([-1], rows)\n"
    text = rows + FLAT.format(flat="flat") + more
    return fuse_model(model(text, QKV, outputs))


def test_attention():
    outcome = attention()
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("more", "outputs"),
    [("z = Relu(p)", "T y, T z"), ("", "T y, T p"), ("z = MatMul(p, p)", "T y, T z")],
    ids=["read", "given", "multiplied"],
)
def test_probabilities_that_are_needed_flat_as_well_are_computed_once(more, outputs):
    """VITS makes relative values of them: it had its scores computed twice."""
    outcome = attention(more, outputs)
    assert sum("Softmax" in op for op in outcome.ops) == 1
    assert outcome.ops.count("MatMul") == 2 + more.count("MatMul")
    outcome.same(*SIZES)


def test_what_costs_little_may_be_computed_twice():
    more = "m = Relu(q3)\nz3 = Add(m, k3)\nz = Reshape(z3, shape)\nr = Sigmoid(m)"
    outcome = attention(more, "T y, T z, T r")
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)
