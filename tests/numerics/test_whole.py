"""Whole models: which sizes they take, what is compared, and who is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models import tiny
from opfuse.numerics.handover import Handover
from opfuse.numerics.whole import compare_models


def parsed(text, opset=18):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def compare(folder, first, second, **options):
    handover = Handover(Path(folder))
    subjects = [handover.subject(model, Path(folder)) for model in (first, second)]
    return compare_models(*subjects, 0, None, **options)


def as_bfloat16(model):
    """The same model with every float tensor and type bfloat16."""
    from opfuse.numerics.retype import retype

    return retype(model, {TensorProto.FLOAT}, TensorProto.BFLOAT16)


def test_large_inline_values_move_to_files_and_equal_ones_only_once(tmp_path):
    model = tiny.bert(hidden=512, intermediate=1024, layers=1).model()
    result = compare(tmp_path, model, model)
    assert result.passed
    assert result.max_rel_err == 0
    moved = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1 << 16]
    moved_bytes = sum(len(tensor.raw_data) for tensor in moved)
    (data,) = tmp_path.glob("*.data")
    assert data.stat().st_size == moved_bytes > 0
    assert all(path.stat().st_size < 1 << 17 for path in tmp_path.glob("*.onnx"))


def test_bfloat16_models_are_compared_in_float32(tmp_path):
    text = """g (float[n, 8] x) => (float[n, 8] y)
        <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = Mul(x, w) }"""
    model = as_bfloat16(parsed(text))
    wrong = as_bfloat16(parsed(text.replace("8}", "11}")))
    assert compare(tmp_path, model, model).passed
    assert compare(tmp_path, model, model).tolerance == 8e-2
    assert not compare(tmp_path, model, wrong).passed


NOTHING = """g (float[n, 8] x) => (float[n, 8] y{}) <float one = {{1}}> {{
    size = Abs(x) more = Add(size, one) less = Neg(more) y = {}(less) {} }}"""


def test_a_model_of_nothing_but_nan_proves_nothing(tmp_path):
    """Whatever was computed before it is lost in it."""
    model = parsed(NOTHING.format("", "Log", ""))
    other = parsed(NOTHING.format("", "Sqrt", ""))
    found = compare(tmp_path, model, other)
    assert "NaN or infinite" in found.not_run
    assert not found.outputs
    finite = parsed(NOTHING.format("", "Neg", ""))
    assert not compare(tmp_path, model, finite).passed
    assert not compare(tmp_path, finite, model).passed


def test_one_output_of_nan_beside_a_finite_one_is_compared(tmp_path):
    model = parsed(NOTHING.format(", float[n, 8] z", "Log", "z = Exp(less)"))
    other = parsed(NOTHING.format(", float[n, 8] z", "Log", "z = Exp(more)"))
    assert compare(tmp_path, model, model).passed
    assert not compare(tmp_path, model, model).not_run
    assert not compare(tmp_path, model, other).passed


def test_a_second_model_with_more_inputs_is_told_by_their_names(tmp_path):
    one = parsed("g (float[n] x) => (float[n] y) { y = Identity(x) }")
    two = parsed("g (float[n] x, float[n] z) => (float[n] y) { y = Add(x, z) }")
    unread = parsed("g (float[n] x, float[n] z) => (float[n] y) { y = Identity(x) }")
    assert compare(tmp_path, one, two).refused == "it reads z, which the first does not"
    assert compare(tmp_path, two, one).refused == ""
    assert compare(tmp_path, one, unread).passed


def test_small_models_run_a_second_time_with_sizes_of_one(tmp_path):
    right = "g (float[n, s] x) => (float[n, s] y) { y = Identity(x) }"
    wrong = """g (float[n, s] x) => (float[n, s] y) {
        shape = Shape(x) one = Constant<value_int: int = 2>() many = Size(x)
        short = Less(many, one) e = Neg(x) y = Where(short, e, x)
    }"""
    result = compare(tmp_path, parsed(right), parsed(wrong))
    assert not result.passed


def test_half_precision_that_proves_nothing_is_excused(tmp_path):
    """The original adds 2048 in float16 and takes it away again; 26624 are its bits."""
    lossy = """g (float16[n, 64] x) => (float16[n, 64] y)
        <float16 a = {26624}, float16 b = {26624}> { s = Add(x, a) y = Sub(s, b) }"""
    exact = "g (float16[n, 64] x) => (float16[n, 64] y) { y = Identity(x) }"
    wrong = "g (float16[n, 64] x) => (float16[n, 64] y) { y = Neg(x) }"
    pieces = {"limit": 1}  # onnxruntime would add and subtract in float32; pieces pass float16 on
    found = compare(tmp_path, parsed(lossy), parsed(exact), **pieces)
    assert found.outputs["y"].max_rel > 0.1
    assert found.excused == {"y"}
    assert found.passed
    refuted = compare(tmp_path, parsed(lossy), parsed(wrong), **pieces)
    assert refuted.excused == frozenset()
    assert not refuted.passed


def test_a_model_that_takes_no_guess_is_not_run(tmp_path):
    model = parsed("g (float[n, 8] a, float[m, 9] b) => (float[n, 8] y) { y = Add(a, b) }")
    result = compare(tmp_path, model, model)
    assert "Add" in result.not_run
    assert result.passed
    assert not result.outputs


def test_nan_in_both_is_no_difference(tmp_path):
    model = parsed("g (float[n, 8] x) => (float[n, 8] y) { y = Log(x) }")
    other = parsed("g (float[n, 8] x) => (float[n, 8] y) { a = Abs(x) y = Log(a) }")
    assert compare(tmp_path, model, model).passed
    result = compare(tmp_path, model, other)
    assert "NaN" in result.outputs["y"].reason


@pytest.mark.parametrize("limit", [192 << 20, 50_000])
def test_the_limit_does_not_change_the_result(tmp_path, limit):
    model = tiny.llama().model()
    assert compare(tmp_path, model, model, limit=limit).max_rel_err == 0


def test_outputs_that_are_inputs_or_weights_are_compared(tmp_path):
    model = parsed(
        "g (float[n] x) => (float[n] x, float[2] w, float[n] y)"
        " <float[2] w = {1, 2}> { y = Neg(x) }"
    )
    result = compare(tmp_path, model, model)
    assert set(result.outputs) == {"x", "w", "y"}
    assert np.isfinite(result.max_rel_err)


def test_a_sequence_is_not_compared(tmp_path):
    model = parsed("g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x, x) }")
    assert "output y is not a tensor" in compare(tmp_path, model, model).not_run


ATTENTION = "y = Attention(q, q, q, mask) }"
IN_FUNCTION = """y = outer.call(q, mask) }
<domain: "outer", opset_import: ["" : 23, "inner" : 1]> call (a, b) => (c) { c = inner.call(a, b) }
<domain: "inner", opset_import: ["" : 23]> call (q, mask) => (y) { y = Attention(q, q, q, mask) }"""


@pytest.mark.parametrize("attention", [ATTENTION, IN_FUNCTION], ids=["here", "in a function"])
def test_a_row_that_an_additive_mask_hides_is_no_difference(tmp_path, attention):
    """onnxruntime's own kernel gives 0 for it, ONNX and every fused form the mean."""
    head = "g (float[b, 2, s, 8] q, float[b, 1, s, s] mask) => (float[b, 2, s, 8] y) { "
    model = parsed(head + attention, opset='23, "outer" : 1, "inner" : 1')
    spelt = parsed(
        head.replace("{ ", "<float scale = {0.3535533845424652}> { ")
        + """keys = Transpose<perm = [0, 1, 3, 2]>(q) scores = MatMul(q, keys)
        scaled = Mul(scores, scale) masked = Add(scaled, mask) weights = Softmax(masked)
        y = MatMul(weights, q) }""",
        opset=23,
    )
    mask = np.zeros((1, 1, 4, 4), np.float32)
    mask[0, 0, 1] = np.finfo(np.float32).min
    feeds = {"q": np.random.default_rng(0).standard_normal((1, 2, 4, 8), np.float32), "mask": mask}
    assert compare(tmp_path, model, spelt, samples=[feeds]).max_rel_err < 1e-6
