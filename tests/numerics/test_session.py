"""Who runs a model: onnxruntime with its optimizer off, and what stands in where that cannot."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from opfuse.numerics.session import CannotRun, OnnxRuntime, Reference, as_defined, open_model

DOUBLE = """<ir_version: 8, opset_import: ["" : 18]>
g (float[2] x) => (float[2] y) { y = Add(x, x) }"""


@pytest.fixture
def levels(monkeypatch):
    """The optimization levels that sessions are opened at; the first of them fail as told."""
    real, asked = onnxruntime.InferenceSession, []

    def use(*failures):
        left = list(failures)

        def session(data, options, providers):
            asked.append(options.graph_optimization_level.name)
            if left:
                raise RuntimeError(left.pop(0))
            return real(data, options, providers=providers)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        return asked

    return use


def doubled(runner):
    return runner.run({"x": np.ones(2, np.float32), "unknown": np.ones(1)})[0].tolist()


def test_the_optimizer_of_onnxruntime_is_off(levels):
    asked = levels()
    assert doubled(OnnxRuntime(onnx.parser.parse_model(DOUBLE))) == [2, 2]
    assert asked == ["ORT_DISABLE_ALL"]


def test_a_cast_that_an_older_onnxruntime_mistypes(levels):
    asked = levels("Type Error: Type (tensor(float)) of InsertedPrecisionFreeCast_typed")
    assert doubled(OnnxRuntime(onnx.parser.parse_model(DOUBLE))) == [2, 2]
    assert asked == ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"]


def test_any_other_refusal_stands(levels):
    asked = levels("Type Error: something else")
    with pytest.raises(CannotRun, match="something else"):
        open_model(onnx.parser.parse_model(DOUBLE))
    assert asked == ["ORT_DISABLE_ALL"]


def test_a_missing_kernel_goes_to_the_reference(levels):
    levels("NOT_IMPLEMENTED : no kernel for Add")
    runner = open_model(onnx.parser.parse_model(DOUBLE))
    assert isinstance(runner, Reference)
    assert doubled(runner) == [2, 2]


ATTENTION = """<ir_version: 10, opset_import: ["" : 23]>
g (float[1, 2, s, 8] q, float[1, 1, m, s] mask) => (float[1, 2, s, 8] y) {
y = Attention(q, q, q, mask)
}"""


@pytest.mark.parametrize("rows", [1, 4], ids=["one row", "all rows"])
@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -np.inf], ids=["lowest", "-inf"])
def test_a_hidden_row_is_what_onnx_defines(rows, lowest):
    model = onnx.parser.parse_model(ATTENTION)
    mask = np.zeros((1, 1, rows, 4), np.float32)
    mask[..., 0, :] = lowest
    feeds = {"q": np.random.default_rng(0).standard_normal((1, 2, 4, 8), np.float32), "mask": mask}
    (defined,) = OnnxRuntime(as_defined(model)).run(feeds)
    np.testing.assert_allclose(defined, Reference(model).run(feeds)[0], rtol=0, atol=1e-6)
    mean = feeds["q"].mean(axis=2) if np.isfinite(lowest) else np.zeros((1, 2, 8))
    np.testing.assert_allclose(defined[:, :, 0], mean, rtol=0, atol=1e-6)


def test_without_a_mask_nothing_is_written_out():
    model = onnx.parser.parse_model(ATTENTION.replace("q, mask)", "q)"))
    assert as_defined(model) is model


def test_angles_of_one_batch_turn_all():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[b, 2, s, 8] x, float[1, s, 4] c) => (float[b, 2, s, 8] y) {
        y = RotaryEmbedding(x, c, c)
        }"""
    )
    random = np.random.default_rng(0)
    sizes = {"x": (3, 2, 5, 8), "c": (1, 5, 4)}
    feeds = {n: random.standard_normal(size, np.float32) for n, size in sizes.items()}
    (turned,) = OnnxRuntime(as_defined(model)).run(feeds)
    np.testing.assert_allclose(turned, Reference(model).run(feeds)[0], rtol=0, atol=1e-6)
