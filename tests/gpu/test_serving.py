"""Packaged bundles on a GPU: Triton's Python backend answers what the engine and the model give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import opfuse
from opfuse.engine import gpu
from opfuse.runtime import Engine, timing
from tests.serving.backend import imported, request, utils

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("name", ["llama_fp16", "gpt2_fp16", "t5_encoder_fp16", "bert", "vit"])
def test_a_packaged_bundle_gives_what_the_model_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if gpu.absent():
        pytest.skip(f"not run: {gpu.absent()}")
    pytest.importorskip("cuda.bindings")
    model = MODELS / f"{name}.onnx"
    try:
        opfuse.build(model, tmp_path / f"{name}.opfuse", backend="segmented", lower="plugin")
    except opfuse.MissingComponent as error:
        pytest.skip(f"not run: {error.what}")
    opfuse.package(tmp_path / f"{name}.opfuse", tmp_path / "repository")
    where = tmp_path / "repository" / name
    assert opfuse.verify(model, where / "1" / "model.opfuse").passed

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils())
    served = imported(where / "1" / "model.py")
    with Engine.load(tmp_path / f"{name}.opfuse") as engine:
        ends = {"input": engine.inputs, "output": engine.outputs}
        ports = {kind: [{"name": value.name} for value in ends[kind]] for kind in ends}
        served.initialize({"model_config": json.dumps(ports), "model_instance_device_id": "0"})
        names = tuple(value.name for value in engine.outputs)
        for seed in range(3):
            given = timing.inputs_of(engine, {}, seed)
            (answer,) = served.execute([request(names, **given)])
            assert answer.error is None
            found = {key: array.tobytes() for key, array in answer.tensors.items()}
            assert found == {key: array.tobytes() for key, array in engine.run(given).items()}
    served.finalize()
