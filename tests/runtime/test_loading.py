"""Plain engines: which TensorRT, which version, which library, and what is said where it fails."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.runtime import library, loading, tensorrt
from opfuse.runtime.engine import Engine
from tests.engine_models import chain
from tests.runtime import host

RTX_HEADER = bytes.fromhex("767472740000000002000000000000000000000000000000 0104004c 76747274")


@pytest.fixture
def plan(tmp_path):
    """What the fake TensorRT takes for an engine: a chain of Relu on [batch, 16]."""
    path = tmp_path / "model.engine"
    path.write_bytes(chain(3).SerializeToString())
    return path


@pytest.fixture
def opened(plan, monkeypatch):
    def open_plan(plugins=None, **options):
        device = host.HostDevice()
        asked = []
        fake = host.api(device, **options)
        monkeypatch.setattr(loading, "import_module", lambda name: asked.append(name) or fake)
        program = loading.load(plan, plugins, lambda: device)
        return Engine(program, 1, True, 8), asked

    return open_plan


def test_a_plain_engine_runs_as_a_bundle_does(opened):
    engine, asked = opened()
    values = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    with engine:
        for _ in range(2):
            np.testing.assert_array_equal(engine.run({"t0": values})["t3"], values.clip(0))
        assert [(v.name, v.shape) for v in engine.inputs] == [("t0", ("?", 16))]
        assert engine.usual_shapes() == {"t0": (2, 32)}
    assert asked == ["tensorrt"]


def test_a_library_beside_the_engine_is_loaded_where_it_needs_one(opened, plan):
    with pytest.raises(EngineError, match="no plugin AddRmsNorm"):
        opened(needs_library=True)
    (plan.parent / library.FILE_NAME).write_bytes(b"a library")
    engine, _ = opened(needs_library=True)
    with engine:
        assert engine.run({"t0": np.ones((1, 16), np.float32)})["t3"].shape == (1, 16)


def test_the_header_tells_which_tensorrt_and_which_version():
    assert tensorrt.module_of(RTX_HEADER) == "tensorrt_rtx"
    assert tensorrt.written_by(RTX_HEADER) == "1.4.0.76"
    assert tensorrt.module_of(b"ftrt" + bytes(60)) == "tensorrt"
    assert tensorrt.written_by(b"ftrt" + bytes(60)) == ""
    assert tensorrt.written_by(b"vtrt") == ""


def test_another_version_is_named_where_tensorrt_refuses(plan, monkeypatch):
    plan.write_bytes(RTX_HEADER)
    fake = host.api(host.HostDevice(), "1.7.1.116", needs_library=True)
    monkeypatch.setattr(loading, "import_module", lambda name: fake)
    with pytest.raises(EngineError, match="cannot load") as error:
        loading.load(plan, None, host.HostDevice)
    assert "built by version 1.4.0.76, 1.7.1.116 is installed" in error.value.fix


def test_what_runs_on_more_gpus_is_named_where_tensorrt_for_rtx_refuses(plan, monkeypatch):
    plan.write_bytes(RTX_HEADER)
    fake = host.api(host.HostDevice(), "1.4.0.76", needs_library=True)
    monkeypatch.setattr(loading, "import_module", lambda name: fake)
    with pytest.raises(EngineError, match="cannot load") as error:
        loading.load(plan, None, host.HostDevice)
    assert error.value.fix.endswith("pip install 'opfuse[tensorrt]'")


def test_a_tensorrt_that_is_not_installed():
    with pytest.raises(MissingComponent, match="no_such_tensorrt cannot be imported"):
        tensorrt.import_module("no_such_tensorrt")


def test_counts_below_one_are_refused(plan):
    with pytest.raises(InputError, match="are counts"):
        Engine.load(plan, contexts=0)


def test_a_type_that_cannot_be_passed_on():
    model = chain(1)
    engine = host.HostEngine(model.SerializeToString(), host.HostDevice())
    engine.get_tensor_dtype = lambda name: type("T", (), {"name": "FP4"})
    with pytest.raises(EngineError, match="type FP4"):
        tensorrt.ports(engine)
    assert onnx.TensorProto.FLOAT16 in tensorrt.ELEMENTS.values()
