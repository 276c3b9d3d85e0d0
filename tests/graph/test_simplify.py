"""Normal form, rule by rule: what may go goes, what may not stays, and the numbers are the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 5})
X = "T[S, 4, 6] x"


def simplified(text: str, inputs: str = X, outputs="T y", *, dtype="float", opset=18, **weights):
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset))


def expect(ops: list[str], text: str, inputs: str = X, **options):
    """``text`` becomes ``ops`` and computes what it did; a last Neg shows that the rest is gone."""
    outcome = simplified(text, inputs, **options)
    assert outcome.ops == ops
    outcome.same(*SIZES)
    return outcome


@pytest.mark.parametrize(
    ("ops", "text", "dtype"),
    [
        (["Neg"], "a = Cast<to=1>(x)\ny = Neg(a)", "float"),
        (["Neg"], "a = Cast<to=1>(x)\nb = Cast<to=10>(a)\ny = Neg(b)", "float16"),
        (["Cast", "Cast", "Neg"], "a = Cast<to=10>(x)\nb = Cast<to=1>(a)\ny = Neg(b)", "float"),
        (["Cast", "Cast", "Neg"], "a = Cast<to=7>(x)\nb = Cast<to=1>(a)\ny = Neg(b)", "float"),
        (["Cast", "Cast", "Neg"], "a = Cast<to=9>(x)\nb = Cast<to=1>(a)\ny = Neg(b)", "float"),
    ],
)
def test_casts(ops, text, dtype):
    expect(ops, text, dtype=dtype)


@pytest.mark.parametrize(
    ("ops", "more"),
    [
        (["Neg"], "y = Concat<axis=-1>(b, a)"),
        (["Neg"], "y = Concat<axis=2>(a, b, a)"),
        (["Concat", "Neg", "Slice"], "y = Concat<axis=-1>(b, a, b)"),
        (["Concat", "Neg", "Slice"], "c = Slice(x, [5], [9], [2])\ny = Concat<axis=-1>(b, c)"),
    ],
)
def test_a_part_of_nothing_is_not_joined(ops, more):
    outcome = simplified(f"a = Slice(x, [6], [9], [2])\nb = Neg(x)\n{more}")
    assert sorted(outcome.ops) == ops
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        (["Neg"], "a = Abs(x)\nb = CastLike(x, a)\ny = Neg(b)"),
        (["Cast", "Neg"], "a = CastLike(n, x)\ny = Neg(a)"),
        (["Cast", "Neg"], "w = Abs(x)\na = CastLike(n, w)\ny = Neg(a)"),
    ],
)
def test_a_cast_by_example_does_not_read_the_example(ops, text):
    outcome = simplified(text, "T[S] x, int64[S] n", "T y")
    assert outcome.ops == ops
    outcome.same({"S": 3})


def test_a_cast_of_integers_that_overflows_stays():
    text = "a = Cast<to=3>(n)\nb = Cast<to=7>(a)\ny = Neg(b)"
    outcome = simplified(text, "int64[S] n", "int64 y")
    assert outcome.ops == ["Cast", "Cast", "Neg"]
    outcome.same({"S": 3}, n=np.array([300, -300, 5]))


NEUTRAL = (
    "Mul(x, 1.0); Mul(1.0, x); Div(x, 1.0); Add(x, 0.0); Add(0.0, x); Sub(x, 0.0); Pow(x, 1.0)"
)
NOT_NEUTRAL = (
    "Div(1.0, x); Sub(0.0, x); Pow(1.0, x); Mul(x, 0.0); Add(x, 1.0); Mul(x, ones); Mul(x, one); "
    "Add(zeros, x)"
)


@pytest.mark.parametrize("text", NEUTRAL.split("; "))
def test_neutral_elements_go(text):
    expect(["Neg"], f"a = {text}\ny = Neg(a)")


@pytest.mark.parametrize("text", NOT_NEUTRAL.split("; "))
def test_what_looks_neutral_stays(text):
    one = np.ones((1, 1, 1, 1), np.float32)
    used = {"ones": np.ones(6, np.float32), "one": one, "zeros": np.zeros((1, 1, 1, 6), np.float32)}
    weights = {
        name: value for name, value in used.items() if f"{name})" in text or f"({name}" in text
    }
    expect([text.split("(")[0], "Neg"], f"a = {text}\ny = Neg(a)", **weights)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        (["Not"], "a = And(m, yes)\ny = Not(a)"),
        (["Not"], "a = Or(no, m)\ny = Not(a)"),
        (["Or", "Not"], "a = Or(m, yes)\ny = Not(a)"),
        (["And", "Not"], "a = And(no, m)\ny = Not(a)"),
    ],
)
def test_logic(ops, text):
    weights = {"yes": np.array(True), "no": np.array(False)}
    used = {name: value for name, value in weights.items() if name in text}
    expect(ops, text, "bool[S, 3] m", outputs="bool y", **used)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        (["Neg"], "a = Expand(x, [1, 1, 1])\ny = Neg(a)"),
        (["Neg"], "a = Expand(x, [1, 4, 6])\ny = Neg(a)"),
        (["Neg"], "s = Shape(x)\na = Expand(x, s)\ny = Neg(a)"),
        (["Expand", "Neg"], "a = Expand(x, [2, 1, 1, 1])\ny = Neg(a)"),
        (["Expand", "Neg"], "a = Expand(x, [1, 1, 1, 1])\ny = Neg(a)"),
        (["Neg"], "a = Slice(x, [0], [4], [1])\ny = Neg(a)"),
        (["Neg"], "a = Slice(x, [-4], [99], [1], [1])\ny = Neg(a)"),
        (["Slice", "Neg"], "a = Slice(x, [1], [4], [1])\ny = Neg(a)"),
        (["Slice", "Neg"], "a = Slice(x, [-1], [-99], [1], [-1])\ny = Neg(a)"),
    ],
)
def test_expand_and_slice(ops, text):
    expect(ops, text)


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        (["Neg"], "a = Unsqueeze(x, [0, 2])\nb = Squeeze(a, [0, 2])\ny = Neg(b)"),
        (["Neg"], "a = Reshape(x, [0, 24])\nb = Reshape(a, [-1, 4, 6])\ny = Neg(b)"),
        (["Neg"], "s = Shape(x)\na = Flatten(x)\nb = Reshape(a, s)\ny = Neg(b)"),
        (["Reshape", "Neg"], "a = Reshape(x, [-1, 8])\nb = Reshape(a, [-1, 12])\ny = Neg(b)"),
        (["Reshape", "Neg"], "a = Reshape(x, [0, 6, 4])\ny = Neg(a)"),
        (["Reshape", "Neg"], "a = Reshape<allowzero=1>(x, [-1, 2, 12])\ny = Neg(a)"),
    ],
)
def test_views(ops, text):
    expect(ops, text)


@pytest.mark.parametrize(
    ("ops", "perms"),
    [
        ([], [[0, 1, 2]]),
        ([], [[0, 2, 1], [0, 2, 1]]),
        ([], [[1, 2, 0], [2, 0, 1]]),
        (["Transpose"], [[1, 2, 0], [1, 2, 0]]),
        (["Transpose"], [None]),
        ([], [None, None]),
    ],
)
def test_transposes(ops, perms):
    text, source = "", "x"
    for index, perm in enumerate(perms):
        attribute = "" if perm is None else f"<perm={perm}>"
        text += f"t{index} = Transpose{attribute}({source})\n"
        source = f"t{index}"
    expect([*ops, "Neg"], text + f"y = Neg({source})")


def test_a_transpose_that_is_read_twice_stays_for_the_other():
    text = (
        "t = Transpose<perm=[0, 2, 1]>(x)\na = Transpose<perm=[0, 2, 1]>(t)\ny = Neg(a)\nz = Exp(t)"
    )
    outcome = simplified(text, outputs="T y, T z")
    assert sorted(outcome.ops) == ["Exp", "Neg", "Transpose"]
    outcome.same(*SIZES)


FLAT = """
    f = Reshape(k, {flat})
    t = Transpose<perm=[0, 2, 1]>(f)
    r = Reshape(t, {out})
    y = Neg(r)
"""


def test_a_transpose_of_flattened_heads():
    text = FLAT.format(flat="[-1, 5, 6]", out="[-1, 3, 6, 5]")
    outcome = expect(["Transpose", "Neg"], text, "T[S, 3, 5, 6] k")
    assert outcome.attribute("Transpose", "perm") == [0, 1, 3, 2]


def test_a_transpose_of_flattened_groups_of_heads():
    """torch flattens the copies of key heads for its product, and so do their batch and groups."""
    text = FLAT.format(flat="[6, 5, 6]", out="[1, 6, 6, 5]")
    outcome = expect(["Reshape", "Transpose", "Neg"], text, "T[1, 2, 3, 5, 6] k")
    assert outcome.attribute("Transpose", "perm") == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("flat", "out", "shape"),
    [
        ("[-1, 15, 6]", "[-1, 6, 3, 5]", "S, 3, 5, 6"),
        ("[-1, 5, 6]", "[-1, 3, 5, 6]", "S, 3, 5, 6"),
        ("[-1, 6, 6]", "[3, -1, 6, 6]", "S, 3, 6, 6"),
    ],
)
def test_other_flattenings_keep_their_meaning(flat, out, shape):
    outcome = simplified(FLAT.format(flat=flat, out=out), f"T[{shape}] k")
    outcome.same(*SIZES)


@pytest.mark.parametrize("bias", ["", "h0", "b"])
def test_a_linear_layer_needs_no_flattening(bias):
    text = "f = Reshape(x, [-1, 6])\nh0 = MatMul(f, w)\n"
    if bias:
        text += f"h = Add({'b, h0' if bias == 'b' else 'h0, b'})\n"
    text += f"r = Reshape({'h' if bias else 'h0'}, [-1, 4, 7])\ny = Neg(r)"
    weights = {"w": (6, 7), **({"b": (7,)} if bias else {})}
    expect(["MatMul", *["Add"] * bool(bias), "Neg"], text, **weights)


def test_a_linear_layer_that_regroups_its_rows_stays():
    text = "f = Reshape(x, [-1, 12])\nh = MatMul(f, w)\nr = Reshape(h, [-1, 4, 7])\ny = Neg(r)"
    outcome = simplified(text, w=(12, 14))
    assert "Reshape" in outcome.ops
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("attributes", "bias", "ops"),
    [
        ("", ", b", ["MatMul", "Add"]),
        ("", "", ["MatMul"]),
        ("<transB=1>", ", b", ["MatMul", "Add"]),
        ("<alpha=1.0, beta=1.0>", ", one", ["MatMul", "Add"]),
        ("", ", wide", ["MatMul", "Add"]),
        ("<alpha=0.5>", ", b", ["Gemm"]),
        ("<beta=2.0>", ", b", ["Gemm"]),
    ],
)
def test_gemm(attributes, bias, ops):
    text = f"y = Gemm{attributes}(a, w{bias})"
    weights = {"w": (7, 6) if "transB" in attributes else (6, 7)}
    shapes = {"b": (7,), "one": (1,), "wide": (1, 7)}
    weights |= {name: shape for name, shape in shapes.items() if f", {name})" in text}
    expect(ops, text, "T[S, 6] a", **weights)


def test_a_transposed_gemm_stays():
    outcome = simplified("y = Gemm<transA=1>(a, w)", "T[6, S] a", w=(6, 7))
    assert outcome.ops == ["Gemm"]
    outcome.same(*SIZES)


def test_a_weight_that_two_gemms_read_transposed_is_not_copied():
    text = "h = Gemm<transB=1>(a, w)\ng = Gemm<transB=1>(c, w)\ny = Add(h, g)"
    outcome = simplified(text, "T[S, 6] a, T[S, 6] c", w=(7, 6))
    assert outcome.ops == ["Gemm", "Gemm", "Add"]
    outcome.same(*SIZES)


def test_dropout_with_its_mask_stays():
    outcome = simplified("y, m = Dropout(x)", outputs="T y, bool m")
    assert outcome.ops == ["Dropout"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("reader", ["", "n = Shape(wide)"])
def test_what_is_widened_turns_before_it_is(reader):
    text = f"wide = Cast<to=1>(x)\n{reader}\nt = Transpose<perm=[0, 2, 1]>(wide)\ny = Neg(t)"
    outcome = simplified(text, outputs="float y" + (", int64 n" if reader else ""), dtype="float16")
    turned = outcome.node("Transpose")
    assert list(turned.input) == ["x"]
    outcome.same(*SIZES)


def test_what_is_narrowed_turns_behind_it():
    text = "thin = Cast<to=10>(x)\nt = Transpose<perm=[0, 2, 1]>(thin)\ny = Neg(t)"
    outcome = simplified(text, outputs="float16 y")
    assert list(outcome.node("Transpose").input) == ["thin"]
    outcome.same(*SIZES)
