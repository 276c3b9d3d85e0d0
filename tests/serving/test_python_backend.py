"""The model.py of a packaged bundle, in a Triton that is none, on a GPU that is none."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest

import opfuse
from opfuse.numerics.session import OnnxRuntime
from opfuse.runtime import library
from tests.engine_models import ROOT, plugins
from tests.runtime import host
from tests.serving.backend import imported, request, utils

LLAMA = ROOT / "models" / "llama.onnx"


@pytest.fixture
def triton_utils(monkeypatch):
    module = utils()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")
def test_a_bundle_is_served_by_the_python_backend(
    tmp_path, monkeypatch, triton_utils, parse_config
):
    """Its model.py runs, on the GPU that is none, and gives what the ONNX model gives."""
    folder = tmp_path / "work"
    folder.mkdir()
    ops = frozenset(op.name for op in library.describe(plugins()).ops)
    model = host.lowered(LLAMA, folder, ops)
    host.bundle(model, folder, plugins(), tmp_path / "llama.opfuse")
    made = opfuse.package(tmp_path / "llama.opfuse", tmp_path / "repository")
    where = tmp_path / "repository" / "llama"
    assert (where / "1" / "model.py").is_file()
    config = parse_config((where / "config.pbtxt").read_text())
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert [list(item.dims) for item in config.input] == [[-1, -1]] * 3
    assert list(config.model_warmup[0].inputs["input_ids"].dims) == [1, 128]
    assert "tensorrt-rtx" in made.notes[0]

    opened = host.open_engine(monkeypatch, where / "1" / "model.opfuse", model)
    loads = []

    def load(path, **options):
        loads.append((path, options))
        return opened

    monkeypatch.setattr("opfuse.runtime.engine.Engine.load", load)
    served = imported(where / "1" / "model.py")
    ports = {kind: [{"name": item.name} for item in getattr(config, kind)]
             for kind in ("input", "output")}  # fmt: skip
    served.initialize({"model_config": json.dumps(ports), "model_instance_device_id": "1"})
    assert loads == [(where / "1" / "model.opfuse", {"device": 1})]
    ids = np.arange(10, dtype=np.int64).reshape(2, 5) % 7
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids),
             "position_ids": np.tile(np.arange(5), (2, 1))}  # fmt: skip
    right, wrong, none = served.execute(
        [
            request(("logits",), **feeds),
            request(("logits",), **{**feeds, "input_ids": ids.astype(np.int32)}),
            request((), **feeds),
        ]
    )
    (expected,) = OnnxRuntime(onnx.load(LLAMA)).run(feeds)
    np.testing.assert_allclose(right.tensors["logits"], expected, rtol=1e-4, atol=1e-4)
    assert right.error is None
    assert (wrong.tensors, none.tensors) == ({}, {})
    assert wrong.error is not None
    served.finalize()
