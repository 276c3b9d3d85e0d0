"""An Einsum that is a matrix product becomes one; any other stays."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

SIZES = ({"B": 2, "Q": 3, "K": 5, "D": 4, "H": 2}, {"B": 1, "Q": 1, "K": 1, "D": 1, "H": 1})


def einsum(equation: str, opset: int = 18):
    a, b = (", ".join(part.replace(" ", "").upper()) for part in equation.split("->")[0].split(","))
    text = f'y = Einsum<equation="{equation}">(a, b)'
    return fuse_model(model(text, f"T[{a}] a, T[{b}] b", opset=opset))


PRODUCTS = {
    "qd,dk->qk": ["MatMul"],
    "bqd,bdk->bqk": ["MatMul"],
    "b q d, b k d -> b q k": ["Transpose", "MatMul"],
    "bhqd,bhkd->bhqk": ["Transpose", "MatMul"],
    "bqhd,bkhd->bhqk": ["Transpose", "Transpose", "MatMul"],
    "bhqk,bkhd->bqhd": ["Transpose", "MatMul", "Transpose"],
    "bqd,dk->bqk": ["MatMul"],
    "bhqd,kd->bhqk": ["Transpose", "MatMul"],
    "qd,dk->kq": ["MatMul", "Transpose"],
}


@pytest.mark.parametrize("opset", [13, 18, 23])
@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product(equation, opset):
    outcome = einsum(equation, opset)
    assert sorted(outcome.ops) == sorted(PRODUCTS[equation])
    outcome.same(*SIZES)


DOTTED = {
    "...qd,...kd->...qk": ["MatMul", "Transpose"],
    "...qhd,...khd->...hqk": ["MatMul", "Transpose", "Transpose"],
    "b...d,dk->b...k": ["MatMul"],
    "qd...,dk...": ["MatMul", "Transpose", "Transpose", "Transpose"],  # in front of the result
}


@pytest.mark.parametrize("opset", [13, 23])
@pytest.mark.parametrize("equation", DOTTED)
def test_axes_that_are_dots(equation, opset):
    """LongT5 has its blocks there."""
    inputs = equation.replace(" ", "").split("->")[0].split(",")
    a, b = (", ".join(part.replace("...", "BH").upper()) for part in inputs)
    text = f'y = Einsum<equation="{equation}">(a, b)'
    outcome = fuse_model(model(text, f"T[{a}] a, T[{b}] b", opset=opset))
    assert sorted(outcome.ops) == DOTTED[equation]
    outcome.same(*SIZES)


OTHER = [
    "qd,dk->q",  # summed over what only one has
    "bqd,bqd->b",
    "bqd,bqd->bq",
    "q,k->qk",
    "bhqd,bhkd->bqk",
    "bqd,dhk->bqhk",  # two axes of a weight
    "bqhd,bkd->bqhk",  # two axes of each batch
]


@pytest.mark.parametrize("equation", OTHER)
def test_what_is_none_stays(equation):
    outcome = einsum(equation)
    assert outcome.ops == ["Einsum"]
    outcome.same(SIZES[0])


def test_sizes_that_may_differ_stay():
    """An axis of 1 is repeated, which a product does not do."""
    text = 'y = Einsum<equation="qd,dk->qk">(a, b)'
    outcome = fuse_model(model(text, "T[Q, D] a, T[E, K] b"))
    assert outcome.ops == ["Einsum"]


@pytest.mark.parametrize("opset", [13, 18])
def test_attention(opset):
    """CompVis' Stable Diffusion, and Flax with its heads behind the positions."""
    text = """
        raw = Einsum<equation="bqhd,bkhd->bhqk">(q, k)
        scores = Mul(raw, 0.35)
        weights = Softmax<axis=-1>(scores)
        y = Einsum<equation="bhqk,bkhd->bqhd">(weights, v)
    """
    inputs = "T[B, Q, 2, 8] q, T[B, K, 2, 8] k, T[B, K, 2, 8] v"
    outcome = fuse_model(model(text, inputs, opset=opset))
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SIZES)
