"""Who runs a model: onnxruntime with its optimizer off, and what stands in where that cannot."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from opfuse.numerics.session import CannotRun, OnnxRuntime, Reference, open_model

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
