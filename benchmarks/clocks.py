"""The clock and the power of a GPU while something runs on it, by NVIDIA's management library."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_SM = 1  # nvmlClockType_t
_POWER_CAP = 4  # of the reasons for a lower clock
_EVERY_S = 0.01


@dataclass
class Seen:
    """Samples of one stretch of time: MHz of the multiprocessors, watts, and at the power limit."""

    mhz: list[int] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    capped: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians, and the share of samples at the power limit; only what was seen."""
        found = {"mhz": self.mhz, "watts": self.watts}
        told = {name: float(median(samples)) for name, samples in found.items() if samples}
        if self.capped:
            told["capped"] = sum(self.capped) / len(self.capped)
        return told


@contextmanager
def watched(address: str) -> Iterator[Seen]:
    """Sample the GPU at a PCI address while the block runs; nothing is seen without the library."""
    seen, done = Seen(), threading.Event()
    opened = _open(address)
    if opened is None:
        yield seen
        return
    thread = threading.Thread(target=_sample, args=(*opened, seen, done), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _open(address: str) -> tuple[Any, Any] | None:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    gpu = ctypes.c_void_p()
    found = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByPciBusId_v2(
        address.encode(), ctypes.byref(gpu)
    )
    return None if found else (library, gpu)


def _sample(library: Any, gpu: Any, seen: Seen, done: threading.Event) -> None:
    value, reasons = ctypes.c_uint(), ctypes.c_ulonglong()
    while not done.wait(_EVERY_S):
        if not library.nvmlDeviceGetClockInfo(gpu, _SM, ctypes.byref(value)):
            seen.mhz.append(value.value)
        if not library.nvmlDeviceGetPowerUsage(gpu, ctypes.byref(value)):
            seen.watts.append(value.value / 1000)
        if not library.nvmlDeviceGetCurrentClocksThrottleReasons(gpu, ctypes.byref(reasons)):
            seen.capped.append(bool(reasons.value & _POWER_CAP))
