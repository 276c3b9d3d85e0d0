"""The few numbers that stand for what a model computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import tiny
from opfuse.numerics import fingerprint
from opfuse.numerics.handover import Handover
from opfuse.numerics.session import CannotRun
from tests.gate import planted


def take(model: onnx.ModelProto, folder, seed: int = 0, shapes=None):
    folder.mkdir(exist_ok=True)
    subject = Handover(folder).subject(model, folder)
    return fingerprint.take(subject, seed, shapes or {})


def small(op: str, *shapes, opset: int = 20, **attributes) -> onnx.ModelProto:
    """One operator on the first of these shapes; the others are its weights."""
    rng = np.random.default_rng(1)
    names = [f"w{index}" for index in range(1, len(shapes))]
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in zip(names, shapes[1:], strict=True)
    ]
    node = helper.make_node(op, ["x", *names], ["y"], op, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_it_is_the_models_output_in_double_precision(tmp_path):
    model = small("MatMul", (4, 64), (64, 8))
    found = take(model, tmp_path / "a")
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32).astype(np.float64)
    y = (x @ weight).ravel()
    signs = fingerprint.signs(y.size, 0)
    assert found.computed_in == "fp64"
    assert found.outputs["y"].shape == (4, 8)
    assert found.outputs["y"].rms == pytest.approx(np.sqrt(np.mean(y * y)), rel=1e-8)
    assert found.outputs["y"].projections[0] == pytest.approx(y @ signs / np.sqrt(32), rel=1e-7)


@pytest.mark.parametrize(
    "model",
    [
        small("Erf", (4, 8)),
        small("Gelu", (4, 8)),
        small("Conv", (1, 3, 9, 9), (4, 3, 3, 3), (4,), strides=[2, 2], pads=[1, 1, 1, 1]),
        small("AveragePool", (1, 3, 8, 8), kernel_shape=[2, 2]),
        small("RotaryEmbedding", (1, 2, 4, 8), (1, 4, 4), (1, 4, 4), opset=23),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_operators_that_onnxruntime_has_no_doubles_for(tmp_path, model):
    found = take(model, tmp_path / "a")
    assert (found.computed_in, found.not_run) == ("fp64", "")
    assert found.outputs["y"].rms > 0


def test_an_operator_without_doubles_anywhere_is_computed_as_stored(tmp_path):
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    model = small("QuantizeLinear", (4, 8))
    model.graph.node[0].input.append("scale")
    model.graph.initializer.append(scale)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    found = take(model, tmp_path / "a")
    assert found.computed_in in ("as stored", "fp64")
    assert found.outputs["y"].dtype == "UINT8"


def test_it_holds_on_a_processor_that_rounds_differently():
    values = np.random.default_rng(0).standard_normal((64, 512))
    noise = 1 + 1e-14 * np.random.default_rng(1).standard_normal(values.shape)
    ours, theirs = (
        fingerprint.summary(array, "FLOAT", 0, fingerprint.EXACT[0])
        for array in (values, values * noise)
    )
    assert ours == theirs


def test_the_numbers_of_large_and_odd_arrays():
    lowest = np.full((2, 3), np.finfo(np.float64).min)
    found = fingerprint.summary(lowest, "DOUBLE", 0, 8)
    assert np.isfinite(found.rms)
    assert np.isfinite(found.projections).all()
    mixed = fingerprint.summary(np.array([1.0, np.nan, np.inf]), "FLOAT", 0, 8)
    assert (mixed.finite, mixed.rms) == (1, 1.0)
    empty = fingerprint.summary(np.empty((0, 4)), "FLOAT", 0, 8)
    assert (empty.finite, empty.rms, empty.projections) == (0, 0.0, (0.0,) * 4)
    flags = fingerprint.summary(np.array([True, False, True, True]), "BOOL", 0, 8)
    assert flags.rms == pytest.approx(0.8660254, abs=1e-7)
    with pytest.raises(CannotRun, match="no tensor of numbers"):
        fingerprint.summary(np.array(["a"]), "STRING", 0, 8)


@pytest.mark.parametrize("fill", [-1e4, -1e9, -3.4e38, np.inf])
def test_what_a_mask_fills_in_hides_no_change_of_the_others(fill):
    values = np.random.default_rng(0).standard_normal((8, 64))
    masked = np.arange(64) % 4 > 0  # most of them

    def of(logits, filled):
        array = np.where(masked, filled, logits)
        return np.array(fingerprint.summary(array, "FLOAT", 0, 8).projections)

    same, changed = of(values, fill), of(values * (1 + 1e-5), fill)
    assert len(same) == (8 if np.isinf(fill) else 9)
    assert np.abs(changed - same).max() > 1e-6
    assert np.abs(of(values, -fill) - same).max() > 0.1
    assert len(of(values, np.nan)) == 4


def test_a_few_large_values_among_others_are_not_apart():
    values = np.geomspace(1e-3, 1e6, 100)
    found = fingerprint.summary(values, "FLOAT", 0, 8)
    assert found.rms == pytest.approx(np.sqrt(np.mean(values * values)), rel=1e-7)
    assert len(found.projections) == 4


def test_signs_are_those_of_splitmix():
    """The first words of the published generator for the seed 0."""
    first = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    assert list(fingerprint.signs(4, 0)) == [-1.0 if word >> 63 else 1.0 for word in first]
    assert abs(fingerprint.signs(10_000, 7).sum()) < 400
    assert set(fingerprint.signs(100, 2**40)) == {-1.0, 1.0}


@pytest.mark.parametrize("change", [planted.epsilon, planted.weight], ids=lambda c: c.__name__)
def test_a_small_change_moves_more_than_the_tolerance(tmp_path, change):
    before, after = planted.bert(), planted.bert()
    change(after)
    one, other = (take(m, tmp_path / str(n)) for n, m in enumerate((before, after)))
    apart = max(
        abs(a - b)
        for name, output in one.outputs.items()
        for a, b in zip(output.projections, other.outputs[name].projections, strict=True)
    )
    assert apart > 2 * fingerprint.EXACT[1]


def test_the_pieces_of_a_large_model_give_the_same(tmp_path):
    model = tiny.llama(layers=2).model()
    subject = Handover(tmp_path).subject(model, tmp_path)
    assert fingerprint.take(subject, 0, {}) == fingerprint.take(subject, 0, {}, limit=1 << 16)


def test_shapes_and_seed_decide_the_inputs(tmp_path):
    model = tiny.bert(layers=1).model()
    shapes = {"input_ids": (3, 9), "attention_mask": (3, 9)}
    found = take(model, tmp_path / "a", shapes=shapes)
    assert found.inputs["input_ids"].shape == (3, 9)
    assert found.inputs != take(model, tmp_path / "b", seed=1, shapes=shapes).inputs


def test_random_numbers_are_no_fingerprint(tmp_path):
    model = small("RandomNormalLike", (4, 8))
    assert take(model, tmp_path / "a").not_run == "it draws random numbers (RandomNormalLike)"


def test_a_model_that_does_not_run(tmp_path):
    model = small("Reshape", (4, 8))
    model.graph.node[0].input.append("shape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 7]), "shape"))
    assert "Reshape" in take(model, tmp_path / "a").not_run
