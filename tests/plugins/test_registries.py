"""The library in real plugin registries: TensorRT 11.4's (lean) and TensorRT-RTX's.  No GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from opfuse.runtime import library

# In a child process: a registry that does not like a library may take the process with it.
SCRIPT = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[2])

def create(op, name, value, kind):
    field = trt.PluginField(name, value, getattr(trt.PluginFieldType, kind))
    fields = trt.PluginFieldCollection([field])
    creator = registry.get_creator(op, "1", "opfuse")
    plugin = creator.create_plugin("node", fields, trt.TensorRTPhase.BUILD)
    return plugin is not None

import numpy as np
one = np.ones(1, np.float32)
found = {
    "ops": {c.name: {f.name: f.type.name for f in c.field_names}
            for c in registry.all_creators if c.plugin_namespace == "opfuse"},
    "created": [create(op, "epsilon", one, "FLOAT32")
                for op in ("RmsNorm", "AddRmsNorm", "AddLayerNorm")]
               + [create("GatedAct", "activation", b"gelu\\0", "CHAR")]
               + [create("AllReduceAddNorm", "norm", b"layer\\0", "CHAR")],
    "refused": create("GatedAct", "activation", one, "FLOAT32"),
}
registry.deregister_library(handle)
found["left"] = [c.name for c in registry.all_creators if c.plugin_namespace == "opfuse"]
print(json.dumps(found))
"""
TENSORRT_TYPE = {"FLOAT": "FLOAT32", "INT": "INT64", "STRING": "CHAR"}


@pytest.mark.parametrize("runtime", ["tensorrt_lean_bindings", "tensorrt_rtx"])
def test_registry_loads_creates_refuses_and_unloads(plugin_library: Path, runtime: str) -> None:
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"not run: {runtime} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, runtime, plugin_library], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ops"] == {
        op.name: {name: TENSORRT_TYPE[kind] for name, kind in op.attributes.items()}
        for op in library.describe(plugin_library).ops
    }
    assert found["created"] == [True] * 5
    assert found["refused"] is False
    assert "GatedAct: attribute 'activation' is FLOAT, need STRING" in done.stderr
    assert found["left"] == []


def test_twin_registers_every_op(plugin_library: Path, tmp_path: Path) -> None:
    """TensorRT's lean runtime stands in for libnvinfer, where its major is the headers'."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    major = library.describe(plugin_library).headers.split(".")[0]
    folder = Path(spec.origin).parent if spec and spec.origin else tmp_path
    lean = folder / f"libnvinfer_lean.so.{major}"
    if not lean.is_file():
        pytest.skip(f"not run: no TensorRT {major} lean runtime, and the twin was built for it")
    (tmp_path / f"libnvinfer.so.{major}").symlink_to(lean)
    twin = plugin_library.with_name("libopfuse_plugins_registered.so")
    script = (
        "import ctypes, tensorrt_lean_bindings as trt\n"
        f"ctypes.CDLL({str(twin)!r})\n"
        "registry = trt.get_plugin_registry()\n"
        "print(*(c.name for c in registry.all_creators if c.plugin_namespace == 'opfuse'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"LD_LIBRARY_PATH": f"{tmp_path}:{folder}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [op.name for op in library.describe(plugin_library).ops]
