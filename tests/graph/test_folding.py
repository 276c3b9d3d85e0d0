"""Constants ahead of time, and equal computations once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opfuse.graph import folding
from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 5})


def folded(text, inputs="T[S, 4] x", outputs="T y", *, opset=18, **weights):
    return fuse_model(model(text, inputs, outputs, weights, "float", opset))


@pytest.mark.parametrize(
    "text",
    [
        "c = Add(w, 1.0)",
        "a = Exp(w)\nb = Sqrt(a)\nc = Mul(a, b)",
        "a = Constant<value_floats=[1.0, 2.0, 3.0, 4.0]>()\nc = Add(a, w)",
        "a = Constant<value_float=2.0>()\nc = Add(w, a)",
        "c = Where(keep, w, 0.0)",
        "a = Reshape(w, [2, 2])\nb = Transpose<perm=[1, 0]>(a)\nc = Reshape(b, [4])",
        "a = Shape(w)\nb = Cast<to=1>(a)\nc = Mul(w, b)",
        "a = ConstantOfShape<value = float[1] {2.5}>([4])\nc = Mul(w, a)",
        "a = Range(0.0, 4.0, 1.0)\nc = Add(a, w)",
    ],
)
def test_what_depends_on_constants_alone_is_computed(text):
    weights = {"w": np.array([0.5, 1.5, 2.5, 4.0], np.float32)}
    if "keep" in text:
        weights["keep"] = np.array([True, False, True, True])
    weights = {name: value for name, value in weights.items() if name in text}
    outcome = folded(text + "\ny = Mul(x, c)", **weights)
    assert outcome.ops == ["Mul"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("op", ["Exp", "Sin", "Pow"])
def test_no_processor_folds_to_other_bits(op):
    """NumPy's Pow has other last bits with AVX-512 than with AVX2: half of a rounding in double."""
    w = np.linspace(0.1, 3.0, 999, dtype=np.float32)
    text = f"a = {op}(w, 2.7)" if op == "Pow" else f"a = {op}(w)"
    outcome = folded(f"{text}\ny = Mul(x, a)", "T[S, 999] x", w=w)
    (result,) = [t for t in outcome.after.graph.initializer if t.dims == [999]]
    wide = w.astype(np.float64)
    exact = {"Exp": np.exp(wide), "Sin": np.sin(wide), "Pow": wide ** np.float64(np.float32(2.7))}
    assert np.array_equal(onnx.numpy_helper.to_array(result), exact[op].astype(np.float32))


@pytest.mark.parametrize(
    "text",
    ["c = Sin(b)", "a = Neg(b)\nc = Exp(a)", "a = Cast<to = 10>(b)\nc = Cast<to = 1>(a)"],
)
def test_what_is_computed_of_copies_of_a_constant_is_computed_once(text):
    shape = "n = Shape<start = 0, end = 1>(x)\nat = Concat<axis = 0>(n, [4])\nb = Expand(w, at)\n"
    outcome = folded(f"{shape}{text}\ny = Concat<axis = 1>(x, c)", w=(4,))
    assert {"Sin", "Neg", "Exp", "Cast"}.isdisjoint(outcome.ops) and "Expand" in outcome.ops
    outcome.same(*SIZES)


def test_copies_of_what_is_no_constant_stay_before_what_is_computed_of_them():
    text = "b = Expand(w, [3, 4])\nc = Sin(b)\ny = MatMul(x, c)"
    outcome = folded(text, "T[S, 3] x, T[4] w", "T y")
    assert outcome.ops == ["Expand", "Sin", "MatMul"]


def test_an_input_that_is_left_out_keeps_nothing_from_being_folded():
    outcome = folded("a = Clip(w, , 2.0)\nb = Exp(a)\ny = Mul(x, b)", w=(4,))
    assert outcome.ops == ["Mul"]
    outcome.same(*SIZES)


def test_sizes_of_the_input_are_followed():
    text = """
        s = Shape(x)
        l = Gather<axis=0>(s, [1])
        d = Div(l, [2])
        c = Cast<to=1>(d)
        y = Mul(x, c)
    """
    outcome = folded(text)
    assert outcome.ops == ["Mul"]
    outcome.same(*SIZES)


def test_a_large_result_stays_computed(monkeypatch):
    monkeypatch.setattr(folding, "MAX_ELEMENTS", 8)
    outcome = folded("c = Expand(w, [3, 4])\nd = Neg(c)\ny = Mul(q, d)", "T[3, 4] q", w=(4,))
    assert "Expand" in outcome.ops
    outcome.same()


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_numbers_are_drawn_when_the_model_runs(op):
    outcome = folded(f"r = {op}(w)\ns = {op}(w)\nt = Sub(r, s)\ny = Mul(x, t)", w=(4,))
    assert outcome.ops.count(op) == 2


def test_equal_nodes_on_equal_small_constants_are_one():
    outcome = folded("a = Mul(x, 3.0)\nb = Mul(x, 3.0)\ny = Sub(a, b)")
    assert outcome.ops == ["Mul", "Sub"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Mul(x, 3.0)", "Mul(x, 4.0)"),
        ("ReduceSum<keepdims=1>(x, [1])", "ReduceSum<keepdims=1>(x, [0])"),
        ("Softmax<axis=1>(x)", "Softmax<axis=0>(x)"),
        ("Mul(x, a4)", "Mul(x, b4)"),
        ("Mul(x, 0.0)", "Mul(x, -0.0)"),
        ("Sub(x, z)", "Sub(z, x)"),
    ],
)
def test_different_nodes_stay_apart(first, second):
    weights = {"a4": (4,), "b4": (4,)} if "a4" in first else {}
    text = f"a = {first}\nb = {second}\ny = Sub(a, b)"
    outcome = folded(text, "T[S, 4] x, T[S, 4] z", **weights)
    assert len(outcome.ops) == 3
    outcome.same(*SIZES)


def test_the_types_of_equal_constants_count():
    text = """
        a = Equal(n, zero)
        b = Cast<to=7>(n)
        c = Equal(b, zero64)
        d = Or(a, c)
        y = Where(d, x, x2)
    """
    outcome = folded(
        text,
        "T[S, 4] x, T[S, 4] x2, int32[S, 4] n",
        zero=np.array(0, np.int32),
        zero64=np.array(0, np.int64),
    )
    assert outcome.ops.count("Equal") == 2
    outcome.same(*SIZES)


def test_several_outputs_are_not_merged():
    split = "Split<axis=1, num_outputs=2>(x)"
    outcome = folded(f"a, b = {split}\nc, d = {split}\ny = Add(a, d)")
    outcome.same(*SIZES)
