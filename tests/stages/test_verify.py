"""`opfuse verify`: two models, the same inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models import tiny
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.stages.verify import verify

BASE = """<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 8] x, int64[n, 4] ids) => (float[n, 8] y, float[n, 4, 3] z)
<float[5, 3] table = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}>
{ y = Tanh(x) z = Gather(table, ids) }"""


def write(path, text=BASE):
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def compare(a, b, **options):
    return verify(a, b, Config(a, **options))


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "a.onnx")


def test_a_model_equals_itself(base):
    result = compare(base, base)
    assert result.passed
    assert result.max_rel_err == 0
    assert list(result.outputs) == ["y", "z"]
    assert result.outputs["y"].cosine == pytest.approx(1)


def test_each_output_has_its_own_difference(base, tmp_path):
    other = write(tmp_path / "b.onnx", BASE.replace("y = Tanh(x)", "t = Tanh(x) y = Neg(t)"))
    result = compare(base, other)
    assert not result.passed
    assert result.outputs["y"].cosine == pytest.approx(-1)
    assert result.outputs["y"].max_rel > 1
    assert result.outputs["z"].max_abs == 0


def test_the_tolerance_decides(base, tmp_path):
    slightly_off = "e = Constant<value_float = 1.001>() t = Tanh(x) y = Mul(t, e)"
    text = BASE.replace("y = Tanh(x)", slightly_off)
    other = write(tmp_path / "b.onnx", text)
    assert not compare(base, other).passed
    assert compare(base, other, rtol=0.01).passed


def test_renamed_inputs_and_outputs_pair_up_by_position(base, tmp_path):
    renamed = BASE.replace("y", "why").replace(" x,", " ex,").replace("(x)", "(ex)")
    assert compare(base, write(tmp_path / "b.onnx", renamed)).passed


def test_reordered_outputs_pair_up_by_name(base, tmp_path):
    swapped = BASE.replace("(float[n, 8] y, float[n, 4, 3] z)", "(float[n, 4, 3] z, float[n, 8] y)")
    assert compare(base, write(tmp_path / "b.onnx", swapped)).passed


def test_a_second_model_that_refuses_the_inputs_does_not_pass(base, tmp_path):
    shorter = BASE.replace("[5, 3] table = {1,2,3,4,5,6,7,8,9,", "[2, 3] table = {")
    other = write(tmp_path / "b.onnx", shorter)
    result = compare(base, other)
    assert not result.passed
    assert result.refused


def test_another_number_of_outputs_does_not_pass(base, tmp_path):
    fewer = BASE.replace(", float[n, 4, 3] z", "").replace("z = Gather(table, ids)", "")
    result = compare(base, write(tmp_path / "b.onnx", fewer))
    assert not result.passed
    assert "1 outputs" in result.refused


def test_the_seed_makes_it_repeatable(base, tmp_path):
    other = write(tmp_path / "b.onnx", BASE.replace("Tanh(x)", "Softsign(x)"))
    first, again, third = (compare(base, other, seed=seed).max_rel_err for seed in (3, 3, 4))
    assert first == again != third


def test_given_shapes_are_used(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[n, m] x) => (float[k, 3, 37] y) <int64[3] shape = {-1, 3, 37}>
    { y = Reshape(x, shape) }"""
    path = write(tmp_path / "a.onnx", text)
    with pytest.raises(InputError, match="does not run"):
        compare(path, path)
    assert compare(path, path, opt_shapes={"x": (2, 111)}).passed
    with pytest.raises(InputError, match="no input z"):
        compare(path, path, opt_shapes={"z": (2, 111)})


@pytest.mark.parametrize("name", ["model.engine", "model.plan", "model.opfuse"])
def test_engines_are_refused_with_the_reason(base, name):
    with pytest.raises(InputError, match="engine"):
        compare(base, base.with_name(name))


def test_a_missing_file_is_named(base):
    with pytest.raises(InputError, match=r"gone\.onnx does not exist"):
        compare(base, base.with_name("gone.onnx"))


def test_inline_and_external_weights_are_the_same_model(tmp_path):
    model = tiny.bert(hidden=256, intermediate=1024)
    inline = model.write(tmp_path / "inline.onnx")
    outside = model.write(tmp_path / "outside.onnx", external=True)
    result = compare(inline, outside)
    assert result.passed
    assert result.max_rel_err == 0


def test_half_precision_has_its_own_tolerance(tmp_path):
    single = tiny.bert().write(tmp_path / "single.onnx")
    half = tiny.bert(dtype=np.float16).write(tmp_path / "half.onnx")
    result = compare(half, half)
    assert result.tolerance == 2e-2
    assert compare(single, single).tolerance == 1e-4


def test_a_model_can_be_compared_with_its_conversion(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (TYPE[n, 8] x) => (TYPE[n, 8] y) { y = Tanh(x) }"""
    single = write(tmp_path / "single.onnx", text.replace("TYPE", "float"))
    half = write(tmp_path / "half.onnx", text.replace("TYPE", "float16"))
    result = compare(single, half)
    assert result.passed
    assert result.tolerance == 2e-2
    assert result.outputs["y"].max_rel > 0
