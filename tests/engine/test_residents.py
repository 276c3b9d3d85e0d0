"""Which tensors TensorRT is taken to have in memory, and how long."""

from __future__ import annotations

import pytest

from opfuse.engine.residents import residents
from tests.engine.test_cut import parsed

ENDS = "float[2,8,8] x, float[8,8] w, bool[2,8,8] m, float z"
CORE = "s = MatMul(x, t)  a = Mul(s, z)  c = Where(m, a, z)  p = Softmax(c)"


def found(body: str, **sizes: int) -> dict[str, tuple[int, int]]:
    """Tensors of other sizes, unless these are told: none takes another's place."""
    model = parsed(f"g ({ENDS}) => (float[2,8,8] y) {{ {body} }}", ())
    every = {name: at for at, node in enumerate(model.graph.node) for name in node.output}
    return residents(model.graph, {**every, **sizes})


def test_products_keep_what_they_read_and_write():
    assert found("a = MatMul(x, w)  r = Relu(a)  s = Neg(r)  c = MatMul(s, w)  y = Neg(c)") == {
        "a": (0, 2),  # one kernel reads it and writes s
        "s": (2, 3),
        "c": (3, 4),
    }


def test_what_is_made_of_one_tensor_alone_takes_its_place():
    body = "a = MatMul(x, w)  r = Relu(a)  s = CastLike(r, a)  c = MatMul(s, w)  y = Neg(c)"
    assert found(body, a=64, s=64) == {"a": (0, 1), "s": (2, 3), "c": (3, 4)}
    assert found(body, a=64, s=32)["a"] == (0, 2)
    body = "a = MatMul(x, w)  r = Relu(a)  c = MatMul(r, w)  y = Add(c, a)"
    assert found(body, a=64, r=64)["a"] == (0, 3)  # it is read again


@pytest.mark.parametrize("mask", ["x", "n"])
def test_a_large_mask_is_read_beside_what_it_masks(mask):
    body = f"a = MatMul(x, w)  n = Log(w)  r = Add(a, {mask})  c = MatMul(r, w)  y = Neg(c)"
    small = found(body, a=64, r=64)
    large = found(body, a=64, r=64, **{mask: 1 << 20})
    assert (small["a"], large["a"]) == ((0, 1), (0, 2))


def test_what_a_later_kernel_reads_again_is_kept():
    assert found(
        "a = MatMul(x, w)  r = Add(a, x)  n = Exp(r)  b = MatMul(n, w)  y = Add(b, r)"
    ) == {
        "a": (0, 1),
        "r": (1, 4),
        "n": (2, 3),
        "b": (3, 4),
    }


def test_attention_of_a_scale_and_a_mask_is_one_kernel():
    seen = found(
        f"t = Transpose<perm = [0, 2, 1]>(x)  {CORE}  h = Cast<to = 1>(p)  y = MatMul(h, x)"
    )
    assert seen == {"t": (0, 6)}


@pytest.mark.parametrize(
    "between",
    [
        "n = IsNaN(p)  h = Where(n, z, p)",  # the guard of some exporters
        "h = Neg(p)",
        "h = Cast<to = 1>(p)  o = Neg(p)",  # the probabilities are read elsewhere too
    ],
)
def test_attention_with_anything_else_has_scores_and_probabilities(between):
    seen = found(f"t = Transpose<perm = [0, 2, 1]>(x)  {CORE}  {between}  y = MatMul(h, x)")
    (first, end), (begin, last) = seen["s"], seen["h"]
    assert first == 1
    assert begin <= end
    assert last > end


def test_a_softmax_without_two_products_is_no_attention():
    assert "s" in found("s = MatMul(x, w)  p = Softmax(s)  y = Neg(p)")
    assert found("p = Softmax(x)  y = Neg(p)") == {}


def test_a_long_chain_is_followed():
    body = " ".join(f"a{i + 1} = Add(a{i}, a{max(i - 1, 0)})" for i in range(5000))
    assert found(f"a0 = MatMul(x, w)  {body}  p = Softmax(a5000)  y = MatMul(p, x)") == {}
