"""Where no plugin pays, an engine is built of the model as it is, if TensorRT takes that."""

from __future__ import annotations

from pathlib import Path

import pytest

import opfuse
from opfuse import original
from opfuse.errors import EngineError
from opfuse.runtime.bundle import Bundle
from tests.engine_models import plugins

MODEL = Path(__file__).resolve().parent.parent / "models" / "vit.onnx"  # in fp32
pytestmark = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")


@pytest.fixture(autouse=True)
def _without_a_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def built(folder: Path) -> opfuse.Report:
    output = folder / "vit.opfuse"
    try:
        report = opfuse.build(MODEL, output, backend="segmented", prove=False, gpu="H100")
    except opfuse.MissingComponent as error:
        pytest.skip(f"not run: {error.what}")
    assert {item.choice for item in report.lowering} == {"leave"}
    assert not list(Bundle.open(output).schedule.plugins())
    return report


def test_the_model_as_it_is(tmp_path):
    engine = built(tmp_path).engine
    assert engine is not None
    assert original._NOTE in engine.notes


def test_what_tensorrt_refuses_is_built_fused(tmp_path, monkeypatch):
    def refused(path):
        raise EngineError("it is refused")

    monkeypatch.setattr(original, "original", refused)
    engine = built(tmp_path).engine
    assert engine is not None
    assert original._NOTE not in engine.notes


def test_another_precision_is_not_the_model_as_it_is(tmp_path):
    config = opfuse.Config(MODEL, precision="fp16")
    source = original.load(MODEL)
    assert original.build_as_it_is(source, tmp_path, config, None, None, {}) is None
