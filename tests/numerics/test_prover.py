"""What the prover refutes, and what it lets pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from opfuse.numerics.extract import CannotProve, build
from opfuse.numerics.prover import judge
from tests.matches import constant, joined, match, normal, opsets

TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = {"float": 1, "float16": 10, "bfloat16": 16}
TYPED = pytest.mark.parametrize("dtype", ["float", "float16"])

RMS = """
two = Constant<value_float: float = 2.0>()
axis = Constant<value_ints: ints = [-1]>()
wide = Cast<to: int = 1>(x)
square = Pow(wide, two)
mean = ReduceMean(square, axis)
shifted = Add(mean, epsilon)
root = Sqrt(shifted)
unit = Div(wide, root)
narrow = Cast<to: int = {code}>(unit)
y = Mul(narrow, gamma)
"""
RMS_FUNCTION = """<domain: "opfuse", opset_import: ["" : 18]>
RmsNorm <epsilon> (x, gamma) => (y) {
axis = Constant<value_ints: ints = [-1]>()
small = Constant<value_float: float = @epsilon>()
wide = Cast<to: int = 1>(x)
factor = Cast<to: int = 1>(gamma)
square = Mul(wide, wide)
mean = ReduceMean(square, axis)
shifted = Add(mean, small)
root = Sqrt(shifted)
unit = Div(wide, root)
scaled = Mul(unit, factor)
y = CastLike(scaled, x)
}"""
ATTENTION = """
keys = Transpose<perm: ints = [0, 1, 3, 2]>(k)
scores = MatMul(q, keys)
scaled = Mul(scores, scale)
masked = Add(scaled, mask)
weights = Softmax<axis: int = -1>(masked)
y = MatMul(weights, v)
"""


def verdict(subject):
    return judge(build(subject, opsets(), Path()), seed=0)


def rms(dtype, after="y = opfuse.RmsNorm<epsilon: float = 1e-6>(x, gamma)"):
    return match(
        RMS.format(code=CODES[dtype]),
        after,
        [f"x: {dtype}[batch, seq, 64]"],
        [f"y: {dtype}[batch, seq, 64]"],
        [constant("epsilon", 1e-6), normal("gamma", 64, dtype=TYPES[dtype])],
        functions=RMS_FUNCTION,
    )


def attention(dtype, before, after, mask="batch, 1, seq, total", extra=()):
    mask_type = "bool" if "Where(mask" in before else dtype
    return match(
        before,
        after,
        [
            f"q: {dtype}[batch, 4, seq, 16]",
            f"k: {dtype}[batch, 4, total, 16]",
            f"v: {dtype}[batch, 4, total, 16]",
            f"mask: {mask_type}[{mask}]",
        ],
        [f"y: {dtype}[batch, 4, seq, 16]"],
        [constant("scale", 0.25, TYPES[dtype]), *extra],
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_the_same_norm_passes(dtype):
    result = verdict(rms(dtype))
    assert result.reason == ""
    assert result.max_rel_err < 0.1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("epsilon", ["1e-5", "1e-8", "0.01"])
def test_a_wrong_epsilon_is_refuted(dtype, epsilon):
    after = f"y = opfuse.RmsNorm<epsilon: float = {epsilon}>(x, gamma)"
    assert "relative error" in verdict(rms(dtype, after)).reason


@TYPED
def test_a_wrong_epsilon_is_refuted_where_the_original_holds_a_fused_op(dtype):
    text = "sum = Add(x, r)\ny = opfuse.RmsNorm<epsilon: float = {}>(sum, gamma)"
    shape = f"{dtype}[batch, seq, 64]"
    subject = match(
        text.format("1e-6"),
        text.format("1e-5"),
        [f"x: {shape}", f"r: {shape}"],
        [f"y: {shape}", f"sum: {shape}"],
        [normal("gamma", 64, dtype=TYPES[dtype])],
        functions=RMS_FUNCTION,
    )
    assert "near zero" in verdict(subject).reason


@TYPED
def test_a_dropped_gamma_is_refuted(dtype):
    after = "one = CastLike(unity, x)\ny = opfuse.RmsNorm<epsilon: float = 1e-6>(x, one)"
    subject = match(
        RMS.format(code=CODES[dtype]),
        after,
        [f"x: {dtype}[batch, seq, 64]"],
        [f"y: {dtype}[batch, seq, 64]"],
        [
            constant("epsilon", 1e-6),
            normal("gamma", 64, dtype=TYPES[dtype]),
            constant("unity", np.ones(1)),
        ],
        functions=RMS_FUNCTION,
    )
    assert "relative error" in verdict(subject).reason


def test_a_gamma_of_ones_does_not_hide_that_it_is_read_wrongly():
    before = "n = LayerNormalization<axis: int = -1>(x, gamma, beta)\ny = Add(n, beta)"
    after = before.replace("Add", "Sub")
    subject = match(
        before,
        after,
        ["x: float[batch, seq, 64]"],
        ["y: float[batch, seq, 64]"],
        [constant("gamma", np.ones(64)), constant("beta", np.zeros(64))],
    )
    assert "relative error" in verdict(subject).reason


@TYPED
def test_a_reordered_attention_passes(dtype):
    after = ATTENTION.replace("MatMul(q, keys)", "MatMul(small, keys)").replace(
        "scaled = Mul(scores, scale)", "scaled = Identity(scores)"
    )
    after = "small = Mul(q, scale)" + after
    assert verdict(attention(dtype, ATTENTION, after)).reason == ""


@TYPED
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Add(scaled, mask)", "Identity(scaled)"),
        ("Add(scaled, mask)", "Sub(scaled, mask)"),
        ("Mul(scores, scale)", "Div(scores, scale)"),
        ("Mul(scores, scale)", "Add(scores, scores)"),
        ("MatMul(q, keys)", "MatMul(k, keys)"),
    ],
    ids=["mask ignored", "mask negated", "scale inverted", "scale off", "operands swapped"],
)
def test_wrong_attention_is_refuted(dtype, right, wrong):
    after = ATTENTION.replace(right, wrong)
    assert verdict(attention(dtype, ATTENTION, after, mask="batch, 1, 1, total")).reason


@TYPED
def test_a_scale_off_by_two_is_refuted(dtype):
    after = ATTENTION.replace("Mul(scores, scale)", "Mul(scores, double)")
    extra = [constant("double", 0.5, TYPES[dtype])]
    assert "relative error" in verdict(attention(dtype, ATTENTION, after, extra=extra)).reason


GUARD = """
nan = IsNaN(raw)
weights = Where(nan, zero, raw)
y = MatMul(weights, v)"""


@TYPED
@pytest.mark.parametrize("guarded", ["before", "after"])
def test_a_fully_masked_row_must_stay_what_it_is(dtype, guarded):
    zero = constant("zero", 0.0, TYPES[dtype])
    with_guard = ATTENTION.replace("weights = Soft", "raw = Soft").replace(
        "\ny = MatMul(weights, v)", GUARD
    )
    sides = (with_guard, ATTENTION) if guarded == "before" else (ATTENTION, with_guard)
    reason = verdict(attention(dtype, *sides, extra=[zero])).reason
    assert "NaN" in reason
    assert "fully masked rows" in reason
    assert verdict(attention(dtype, with_guard, with_guard, extra=[zero])).reason == ""
    assert verdict(attention(dtype, ATTENTION, ATTENTION)).reason == ""


def test_a_boolean_mask_gets_rows_without_any_key():
    masked = ATTENTION.replace("Add(scaled, mask)", "Where(mask, scaled, low)")
    minus_inf = constant("low", -np.inf)
    finite = constant("low", np.finfo(np.float32).min)
    right = attention("float", masked, masked, extra=[minus_inf])
    assert verdict(right).reason == ""
    wrong = match(
        masked,
        masked.replace("low", "lowest"),
        [
            "q: float[b, 4, s, 16]",
            "k: float[b, 4, s, 16]",
            "v: float[b, 4, s, 16]",
            "mask: bool[b, 1, s, s]",
        ],
        ["y: float[b, 4, s, 16]"],
        [constant("scale", 0.25), minus_inf, constant("lowest", finite.values)],
    )
    assert "NaN" in verdict(wrong).reason


REPEAT = """
k5 = Unsqueeze(k, two)
many = Expand(k5, copies)
keys = Reshape(many, shape)
kt = Transpose<perm: ints = [0, 1, 3, 2]>(keys)
y = MatMul(q, kt)
"""
TILE = """
keys = Tile(k, repeats)
kt = Transpose<perm: ints = [0, 1, 3, 2]>(keys)
y = MatMul(q, kt)
"""


@TYPED
def test_a_wrong_head_order_of_grouped_queries_is_refuted(dtype):
    subject = match(
        REPEAT,
        TILE,
        [f"q: {dtype}[batch, 4, seq, 16]", f"k: {dtype}[batch, 2, seq, 16]"],
        [f"y: {dtype}[batch, 4, seq, seq]"],
        [
            constant("two", [2], "int64"),
            constant("copies", [1, 1, 2, 1, 1], "int64"),
            constant("shape", [0, 4, -1, 16], "int64"),
            constant("repeats", [1, 2, 1, 1], "int64"),
        ],
    )
    assert "relative error" in verdict(subject).reason


@TYPED
def test_gate_and_up_are_told_apart(dtype):
    before = "s = Sigmoid(gate)\na = Mul(gate, s)\ny = Mul(a, up)"
    inputs = [f"gate: {dtype}[batch, seq, 32]", f"up: {dtype}[batch, seq, 32]"]
    outputs = [f"y: {dtype}[batch, seq, 32]"]
    assert verdict(match(before, before, inputs, outputs)).reason == ""
    swapped = before.replace("Sigmoid(gate)", "Sigmoid(up)").replace("Mul(gate, s)", "Mul(up, s)")
    swapped = swapped.replace("Mul(a, up)", "Mul(a, gate)")
    assert verdict(match(before, swapped, inputs, outputs)).reason


@TYPED
@pytest.mark.parametrize("order", [("wq", "wk", "wv"), ("wk", "wq", "wv")], ids=["right", "wrong"])
def test_merged_weights_are_those_of_the_parts(dtype, order):
    parts = {name: normal(name, 64, 64, dtype=TYPES[dtype]) for name in ("wq", "wk", "wv")}
    merged = joined("w", [parts[name] for name in order], 1)
    subject = match(
        "q = MatMul(x, wq)\nk = MatMul(x, wk)\nv = MatMul(x, wv)",
        "y = MatMul(x, w)\nq, k, v = Split<axis: int = -1, num_outputs: int = 3>(y)",
        [f"x: {dtype}[batch, seq, 64]"],
        [f"{name}: {dtype}[batch, seq, 64]" for name in "qkv"],
        [*parts.values(), merged],
    )
    assert bool(verdict(subject).reason) == (order[0] == "wk")


def test_large_weights_are_imitated_not_read():
    rows, cols = 1024, 1100
    text = "y = MatMul(x, w)"
    subject = match(
        text, text, [f"x: float[n, {rows}]"], [f"y: float[n, {cols}]"], [normal("w", rows, cols)]
    )
    case = build(subject, opsets(), Path())
    assert case.weights[0].values is None
    assert len(case.before) < 1000
    assert judge(case, seed=0).reason == ""


def test_an_overflow_that_the_fused_form_avoids_is_no_fault():
    naive = (
        RMS.replace("wide = Cast<to: int = 1>(x)", "wide = Identity(x)")
        .replace("Add(mean, epsilon)", "Add(mean, tiny)")
        .replace("two = Constant<value_float: float = 2.0>()", "two = CastLike(pair, x)")
    )
    tiny = float(np.float16(1e-6))  # what a fusion reads
    subject = match(
        naive.format(code=10),
        f"y = opfuse.RmsNorm<epsilon: float = {tiny}>(x, gamma)",
        ["x: float16[batch, seq, 64]"],
        ["y: float16[batch, seq, 64]"],
        [
            constant("pair", 2.0),
            constant("tiny", tiny, "float16"),
            normal("gamma", 64, dtype="float16"),
        ],
        functions=RMS_FUNCTION,
    )
    assert verdict(subject).reason == ""


def test_an_overflow_that_only_the_fused_form_has_is_refuted():
    naive = (
        RMS_FUNCTION.replace("wide = Cast<to: int = 1>(x)", "wide = Identity(x)")
        .replace(
            "small = Constant<value_float: float = @epsilon>()",
            "e = Constant<value_float: float = @epsilon>()\nsmall = CastLike(e, x)",
        )
        .replace("factor = Cast<to: int = 1>(gamma)", "factor = Identity(gamma)")
    )
    subject = match(
        RMS.format(code=10),
        "y = opfuse.RmsNorm<epsilon: float = 1e-6>(x, gamma)",
        ["x: float16[batch, seq, 64]"],
        ["y: float16[batch, seq, 64]"],
        [constant("epsilon", 1e-6), normal("gamma", 64, dtype="float16")],
        functions=naive,
    )
    assert "near" in verdict(subject).reason


def test_indices_stay_inside_the_table():
    text = "y = Gather<axis: int = 0>(table, ids)"
    subject = match(
        text, text, ["ids: int64[batch, seq]"], ["y: float[batch, seq, 8]"], [normal("table", 3, 8)]
    )
    assert verdict(subject).reason == ""


def test_sizes_that_must_be_equal_are_found_by_trying():
    text = "y = Add(a, b)"
    subject = match(
        text, text, ["a: float[batch, s, 8]", "b: float[batch, u, 8]"], ["y: float[batch, s, 8]"]
    )
    assert verdict(subject).reason == ""


def test_what_cannot_run_is_not_proven():
    text = "y = MatMul(a, b)"
    subject = match(text, text, ["a: float[n, 8]", "b: float[9, 8]"], ["y: float[n, 8]"])
    assert "does not run with any sizes" in verdict(subject).reason


def test_a_fused_form_that_does_not_run_is_refuted():
    subject = match(
        "y = MatMul(a, b)",
        "y = MatMul(b, a)",
        ["a: float[n, 8]", "b: float[8, 9]"],
        ["y: float[n, 9]"],
    )
    assert "the fused form does not run" in verdict(subject).reason


def test_an_unknown_rank_cannot_be_proven():
    subject = match("y = Neg(x)", "y = Neg(x)", ["x: float[n]"], ["y: float[n]"])
    unknown = replace(subject.before.inputs[0], shape=None)
    subject = replace(subject, before=replace(subject.before, inputs=(unknown,)))
    with pytest.raises(CannotProve, match="rank of x"):
        build(subject, opsets(), Path())


def test_a_value_inside_the_original_may_be_read():
    subject = match(
        "t = Neg(x)\ny = Abs(t)", "y = Relu(t)\n", ["x: float[n, 8]"], ["y: float[n, 8]"]
    )
    inside = replace(subject.before.inputs[0], name="t")
    subject = replace(subject, after=replace(subject.after, inputs=(inside,)))
    case = build(subject, opsets(), Path())
    assert case.shared == ("t",)
    assert "relative error" in judge(case, seed=0).reason
