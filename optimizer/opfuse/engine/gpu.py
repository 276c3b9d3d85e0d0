"""Whether this machine has a GPU and which, asked of the driver and of nothing else."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU by its name and its compute capability, such as ``"9.0"``."""

    name: str
    compute_capability: str


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


def count() -> int:
    """How many GPUs this process sees."""
    found = ctypes.c_int(0)
    if absent() or ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(found)) != 0:
        return 0
    return found.value


def current(index: int = 0) -> Gpu | None:
    """The GPU of this number, or None where there is no usable one."""
    if absent():
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Gpu(name.value.decode(errors="replace"), "{}.{}".format(*numbers))
