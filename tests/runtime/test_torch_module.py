"""A torch module beside an engine, with a torch and a GPU that are none."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.files import is_module
from opfuse.runtime import torch_module
from tests.runtime import host

MODEL = """
def make():
    return lambda x, ids: {"y": (x, [ids])}

def none():
    return None

def broken():
    raise OSError("no weights")

def failing():
    def run(x, ids):
        raise ValueError("wrong shapes")
    return run
"""
SHAPES = {"x": (2, 3), "ids": (4,)}
TYPES = {"x": TensorProto.BFLOAT16, "ids": TensorProto.INT64}


class Tensor(SimpleNamespace):
    """An array that has been given to torch."""

    def cuda(self):
        return self

    detach = float = cpu = cuda

    def view(self, dtype):
        return Tensor(array=self.array.view(dtype))

    def numpy(self):
        return self.array.astype(np.float32)


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    cuda = SimpleNamespace(
        ExternalStream=lambda stream: stream,
        stream=nullcontext,
        graph=lambda graph, stream: nullcontext(),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
    )
    fake = SimpleNamespace(
        cuda=cuda,
        no_grad=nullcontext,
        nn=SimpleNamespace(Module=type(None)),
        bfloat16=ml_dtypes.bfloat16,
        from_numpy=lambda array: Tensor(array=array),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    device = host.HostDevice()
    monkeypatch.setattr(torch_module, "open_device", lambda: device)


def measure(folder: Path, name: str):
    (folder / "model.py").write_text(MODEL)
    return torch_module.measure(f"{folder}/model.py:{name}", SHAPES, TYPES, 3, 1, 0)


def test_a_module_gets_what_the_engine_gets(tmp_path):
    found = measure(tmp_path, "make")
    assert (found.shapes, found.types) == (SHAPES, TYPES)
    assert found.eager.median_us == found.graph.p99_us == 1.0  # of the test's clock
    assert (found.segments, found.plugins, found.steps) == (0, 0, ())
    assert 0 < found.largest < 9
    assert found.load_s < found.first_result_s


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "nothing that can be called"), ("gone", "nothing that"), ("broken", "no weights")],
)
def test_what_makes_no_module_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        measure(tmp_path, name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no Python file"):
        torch_module.measure(f"{tmp_path}/none.py:make", SHAPES, TYPES, 1, 1, 0)


def test_a_module_that_fails_says_how(tmp_path):
    with pytest.raises(EngineError, match="ValueError: wrong shapes"):
        measure(tmp_path, "failing")


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingComponent, match="torch is not installed"):
        measure(tmp_path, "make")


@pytest.mark.parametrize(
    ("path", "module"),
    [("a/m.py:make", True), ("m.py:", False), ("m.py", False), ("m.engine:make", False)],
)
def test_what_names_a_module(path, module):
    assert is_module(Path(path)) is module
