"""Whether this machine has a GPU, asked of the driver and of nothing else."""

from __future__ import annotations

import ctypes
from functools import lru_cache


@lru_cache(maxsize=1)
def absent() -> str:
    """Why there is no usable NVIDIA GPU; empty where there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not here)"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver finds no usable GPU (cuInit says {code})"
    count = ctypes.c_int(0)
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if code == 0 and count.value > 0 else "the NVIDIA driver lists no GPU"
