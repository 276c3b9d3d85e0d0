"""Every operator that works on a part of its data, between a product by columns and one by rows."""

from __future__ import annotations

import pytest

from opfuse.errors import InputError
from tests.ranks import cut
from tests.small import model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 4})
HEADS = "r = Reshape(h, [0, 0, 4, 2])\n"
BACK = "z = Reshape(t, [0, 0, 8])\n"
TURNED = HEADS + "k = Transpose<perm=[0, 2, 1, 3]>(r)\n"
TURNED_BACK = "u = Transpose<perm=[0, 2, 1, 3]>(t)\nz = Reshape(u, [0, 0, 8])\n"

SPLIT = {
    "unary": "a = Tanh(h)\nb = Abs(a)\nc = Sqrt(b)\nz = Neg(c)\n",
    "a scalar and a vector": "a = Mul(h, 0.5)\nz = Add(a, bias)\n",
    "a matrix for each position": "z = Add(g, h)\n",
    "one feature for all": "z = Mul(h, one)\n",
    "clipped": "z = Clip(h, -0.5, 0.5)\n",
    "chosen": "p = Greater(h, 0.0)\nz = Where(p, h, bias)\n",
    "cast": "a = Cast<to=11>(h)\nb = Exp(a)\nz = Cast<to=1>(b)\n",
    "a slope for each feature": "z = PRelu(h, bias)\n",
    "softmax of a head": HEADS + "t = Softmax<axis=-1>(r)\n" + BACK,
    "norm of a head": HEADS + "t = LayerNormalization<axis=-1>(r, two, two)\n" + BACK,
    "mean of a head": HEADS + "m = ReduceMean<keepdims=1>(r, [-1])\nt = Sub(r, m)\n" + BACK,
    "largest of the tokens": HEADS + "m = ReduceMax<keepdims=1>(r, [1])\nt = Sub(r, m)\n" + BACK,
    "heads in front": TURNED + "t = Relu(k)\n" + TURNED_BACK,
    "a product for each head": TURNED
    + "q = Transpose<perm=[0, 1, 3, 2]>(k)\ns = MatMul(k, q)\nt = MatMul(s, k)\n"
    + TURNED_BACK,
    "a product with a weight for each head": TURNED + "t = MatMul(k, each)\n" + TURNED_BACK,
    "a product with one for all heads": TURNED + "t = MatMul(k, square)\n" + TURNED_BACK,
    "halves of a head": HEADS
    + "a, b = Split<axis=-1>(r, [1, 1])\nn = Neg(b)\nt = Concat<axis=-1>(n, a)\n"
    + BACK,
    "the tokens turned": "z0 = Slice(h, [-1], [-99], [1], [-1])\nz = Add(z0, h)\n",
    "picked from": "z = Gather<axis=1>(h, ids)\n",
    "a row for each index": TURNED
    + "b = Gather<axis=0>(table, ids)\nc = Transpose<perm=[1, 0]>(b)\n"
    + "d = Unsqueeze(c, [2])\nt0 = Slice(d, [0], [1], [1])\nt = Add(k, t0)\n"
    + TURNED_BACK,
    "copied": HEADS
    + "f = Unsqueeze(r, [4])\ne = Expand(f, [1, 1, 1, 1, 3])\n"
    + "t = ReduceSum<keepdims=0>(e, [4])\n"
    + BACK,
    "halves that are joined again": "a, b = Split<axis=-1>(h, [4, 4])\n"
    "c = Tanh(a)\nz = Concat<axis=-1>(c, b)\n",
    "halves exchanged": "a, b = Split<axis=-1>(h, [4, 4])\nz = Concat<axis=-1>(b, a)\n",
    "two products that are joined": "g2 = MatMul(x, w4)\na, b = Split<axis=-1>(h, [4, 4])\n"
    "c = Mul(a, b)\nz = Concat<axis=-1>(g2, c)\n",
    "axes of one": "a = Unsqueeze(h, [0, 3])\nb = Relu(a)\nz = Squeeze(b, [0, 3])\n",
    "flat": "a = Flatten<axis=2>(h)\nb = Relu(a)\nsizes = Shape(h)\nz = Reshape(b, sizes)\n",
    "gated": "s = Sigmoid(h)\na = Mul(h, s)\ng2 = MatMul(x, w2)\nz = Mul(a, g2)\n",
}
LEFT = {
    "softmax of all features": "z = Softmax<axis=-1>(h)\n",
    "norm of all features": "z = LayerNormalization<axis=-1>(h, bias, bias)\n",
    "mean of all features": "m = ReduceMean<keepdims=1>(h, [-1])\nz = Sub(h, m)\n",
    "parts that the ranks do not divide": "a, b = Split<axis=-1>(h, [3, 5])\n"
    "c = Tanh(a)\nz = Concat<axis=-1>(c, b)\n",
    "a cut through the features": "a = Slice(h, [1], [7], [2])\nz = Concat<axis=-1>(a, a2)\n",
    "features in another order": "z = Gather<axis=2>(h, [7, 6, 5, 4, 3, 2, 1, 0])\n",
    "running sums": "two_ = Cast<to=7>(2.0)\nz = CumSum(h, two_)\n",
    "sorted": "z, order = TopK<axis=-1>(h, [8])\n",
}


def built(text: str):
    inputs = "T[B, S, 6] x, T[B, S, 8] g, int64[S] ids, T[B, S, 2] a2"
    weights = {
        "w": (6, 8),
        "w2": (6, 8),
        "w4": (6, 4),
        "v": (8, 6),
        "bias": (8,),
        "one": (1,),
        "two": (2,),
        "each": (4, 2, 2),
        "square": (2, 2),
        "table": (4, 4),
    }
    return model(f"h = MatMul(x, w)\n{text}y = MatMul(z, v)\n", inputs, weights=weights)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", SPLIT)
def test_a_part_of_the_data_gives_a_part_of_the_result(tmp_path, case, ranks):
    made = cut(built(SPLIT[case]), ranks, tmp_path)
    made.same(*SIZES)
    kinds = [how for how, _ in made.products()]
    assert set(kinds) == {"column", "row"}
    assert made.plan.collectives["AllReduce"] == 1


@pytest.mark.parametrize("case", LEFT)
def test_what_needs_the_whole_is_left(tmp_path, case):
    with pytest.raises(InputError, match="nothing in it can be split among 2 ranks"):
        cut(built(LEFT[case]), 2, tmp_path)


@pytest.mark.parametrize(
    ("attributes", "half"), [("", 2), ("<num_heads=2>", 2), ("<rotary_embedding_dim=2>", 1)]
)
def test_heads_that_the_standard_operator_turns(tmp_path, attributes, half):
    text = (
        "h = MatMul(x, w)\nr = Reshape(h, [0, 0, 2, 4])\nk = Transpose<perm=[0, 2, 1, 3]>(r)\n"
        f"t = RotaryEmbedding{attributes}(k, cos, sin)\n{TURNED_BACK}y = MatMul(z, v)\n"
    )
    inputs = f"T[B, S, 6] x, T[B, S, {half}] cos, T[B, S, {half}] sin"
    weights = {"w": (6, 8), "v": (8, 6)}
    made = cut(model(text, inputs, weights=weights, opset=23), 2, tmp_path)
    made.same(*SIZES)
    assert made.products() == [("column", (6, 4)), ("row", (4, 6))]
