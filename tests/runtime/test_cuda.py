"""What is said where CUDA refuses; the runtime is none."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace

import pytest

from opfuse.engine.gpu import Gpu
from opfuse.errors import EngineError
from opfuse.runtime.cuda import Device


class Error(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (Error.cudaErrorMemoryAllocation, "nvidia-smi shows who"),
        (Error.cudaErrorIllegalAddress, "start the process again"),
        (Error.cudaErrorInvalidDevice, ""),
    ],
)
def test_errors_have_cudas_name_and_what_to_do(error: Error, fix: str) -> None:
    runtime = SimpleNamespace(
        cudaSetDevice=lambda index: (Error.cudaSuccess,), cudaMalloc=lambda size: (error, 0)
    )
    device = Device(runtime, Gpu("a GPU", "9.0"), 0)
    with pytest.raises(EngineError, match=f"cudaMalloc gives {error.name}") as caught:
        device.allocate(1 << 40)
    assert caught.value.fix.startswith(fix)
    assert bool(caught.value.fix) is bool(fix)
