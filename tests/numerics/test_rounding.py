"""Half precision with a rounding behind every operator, where onnxruntime has none or hides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from models import tiny
from opfuse.numerics.handover import Handover
from opfuse.numerics.retype import retype
from opfuse.numerics.whole import Loaded, compare_models
from tests.small import draw, fuse_model, model

LIMIT = 1 << 30


def loaded(made, folder, rounds=True):
    return Loaded(replace(Handover(folder).subject(made, folder), rounds=rounds), LIMIT)


def test_an_overflow_between_two_operators_shows(tmp_path):
    made = model("a = Mul(x, x)\ny = Sqrt(a)", "T[3] x", dtype="float16")
    feeds = {"x": np.array([3, 1000, -1], np.float16)}
    assert loaded(made, tmp_path, rounds=False).run(feeds)["y"].tolist() == [3, 1000, 1]
    wide = {"x": feeds["x"].astype(np.float32)}
    assert loaded(made, tmp_path).run(wide)["y"].tolist() == [3, np.inf, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_rounds_as_the_reference_evaluator_does(dtype, tmp_path):
    text = "a = MatMul(x, w)\nb = Mul(a, 0.3)\nc = Exp(b)\nd = Add(c, x)\ny = Tanh(d)"
    made = model(text, "T[5, 8] x", weights={"w": (8, 8)}, dtype=dtype)
    element = made.graph.input[0].type.tensor_type.elem_type
    low = onnx.helper.tensor_dtype_to_np_dtype(element)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(low)
    (want,) = ReferenceEvaluator(made).run(None, {"x": x})
    have = loaded(made, tmp_path).run({"x": x.astype(np.float32)})["y"]
    step = float(np.finfo(np.float16).eps if dtype == "float16" else 2.0**-7)
    assert np.abs(want.astype(np.float32) - have).max() <= step
    assert (have == have.astype(low)).all()


def test_values_inside_of_fused_ops_are_rounded_too(tmp_path):
    """q times k reaches 2e5 before the softmax takes it back."""
    text = "kt = Transpose<perm=[0, 1, 3, 2]>(k)\nraw = MatMul(q, kt)\n"
    text += "p = Softmax<axis=-1>(raw)\ny = MatMul(p, v)"
    inputs = ", ".join(f"T[1, 1, 4, 8] {name}" for name in "qkv")
    outcome = fuse_model(model(text, inputs, dtype="float16"))
    assert outcome.counts == {"FlashAttention": 1}
    feeds = {name: array.astype(np.float32) for name, array in draw(outcome.before, {}, 0).items()}
    feeds["q"] *= 2e5
    assert np.isnan(loaded(outcome.after, tmp_path).run(feeds)["y"]).any()


def test_types_are_found_where_no_weight_and_no_end_has_them(tmp_path):
    text = "h = Cast<to=16>(x)\ng = Mul(h, h)\ny = Cast<to=1>(g)"
    made = model(text, "T[4] x")
    x = np.array([1.0, 1.01, 3.3, 1e18], np.float32)
    plain = loaded(made, tmp_path, rounds=False).run({"x": x})["y"]
    assert np.allclose(plain, x * x)  # bfloat16 in fp32, for want of kernels
    rounded = loaded(made, tmp_path).run({"x": x})["y"]
    assert rounded[:3].tolist() == [1.0, 1.015625, 10.875]
    assert np.isfinite(rounded).all()


def test_a_whole_model_against_itself_in_half_precision(tmp_path):
    made = tiny.bert(layers=1).model()
    half = retype(made, {TensorProto.FLOAT}, TensorProto.FLOAT16)
    handover = Handover(tmp_path)
    subjects = [handover.subject(one, tmp_path) for one in (made, half)]
    pair = (subjects[0], replace(subjects[1], rounds=True))
    result = compare_models(*pair, 0, None)
    assert result.passed
    assert 1e-5 < max(found.rms for found in result.outputs.values()) < 1e-2
