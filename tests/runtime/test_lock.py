"""What a bundle was built with and for, compared with what is here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opfuse.engine.gpu import Gpu
from opfuse.errors import MissingComponent
from opfuse.runtime.lock import Lock, check_gpu, check_library, check_tensorrt, runs_on

LOCK = Lock(
    module="tensorrt_rtx",
    tensorrt="1.4.0.76",
    gpu=Gpu("NVIDIA H100", "9.0"),
    library="a" * 64,
    architectures=("80-real", "90-real", "100"),
    opfuse="0.1.0",
)


def test_a_lock_comes_back_from_json():
    for lock in (LOCK, replace(LOCK, gpu=None)):
        assert Lock.from_dict(json.loads(json.dumps(lock.as_dict()))) == lock


def test_what_it_was_built_with_passes():
    check_tensorrt(LOCK, "x.opfuse", "1.4.0.76")
    check_gpu(LOCK, "x.opfuse", Gpu("NVIDIA H200", "9.0"))
    check_library(LOCK, "x.opfuse", "lib.so", "a" * 64)


def test_another_tensorrt_is_refused_with_the_wheel_to_install():
    with pytest.raises(
        MissingComponent, match=r"built by tensorrt_rtx 1\.4\.0\.76; 1\.7\.1"
    ) as error:
        check_tensorrt(LOCK, "x.opfuse", "1.7.1.116")
    assert "pip install tensorrt-rtx-cu13==1.4.0.76" in error.value.fix
    assert "fused.onnx" in error.value.fix


def test_another_gpu_is_refused_and_both_are_named():
    with pytest.raises(MissingComponent, match=r"NVIDIA H100 \(compute capability 9\.0\).*L4") as e:
        check_gpu(LOCK, "x.opfuse", Gpu("NVIDIA L4", "8.9"))
    assert "build it again here" in e.value.fix


def test_without_a_gpu_at_build_time_the_plugin_library_decides():
    lock = replace(LOCK, gpu=None)
    check_gpu(lock, "x.opfuse", Gpu("NVIDIA L4", "8.9"))
    with pytest.raises(MissingComponent, match=r"has kernels for 80-real, 90-real, 100"):
        check_gpu(lock, "x.opfuse", Gpu("an old one", "7.5"))
    check_gpu(replace(lock, library=""), "x.opfuse", Gpu("an old one", "7.5"))


def test_another_plugin_library_is_refused():
    with pytest.raises(MissingComponent, match=r"another plugin library than lib\.so") as error:
        check_library(LOCK, "x.opfuse", "lib.so", "b" * 64)
    assert "--plugins" in error.value.fix


@pytest.mark.parametrize(
    ("architecture", "runs", "fails"),
    [
        ("80-real", ["8.0", "8.6", "8.9"], ["7.5", "9.0", "10.0"]),
        ("90a-real", ["9.0"], ["8.9", "10.0", "12.0"]),
        ("90-virtual", ["9.0", "10.0", "12.0"], ["8.9"]),
        ("100", ["10.0", "10.3", "12.0"], ["9.0"]),
        ("120-real", ["12.0", "12.1"], ["10.0"]),
    ],
)
def test_which_gpus_an_architecture_runs_on(architecture, runs, fails):
    assert [c for c in runs if not runs_on((architecture,), c)] == []
    assert [c for c in fails if runs_on((architecture,), c)] == []
