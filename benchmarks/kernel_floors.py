"""Times what no kernel does without, beside the kernels: see ``kernel_floors.cu``."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.nvcc import compiled

SOURCE = Path(__file__).with_suffix(".cu")
WARPS = (4, 8, 16)  # of a block; the fastest counts
NORMS = ("RmsNorm", "AddRmsNorm", "AddLayerNorm")
OPS = (*NORMS, "GatedAct")
VECTORS = ctypes.c_void_p * 2
Launch = Callable[[int], object]


class _Tensors(ctypes.Structure):
    _fields_ = [("inputs", VECTORS), ("weights", VECTORS), ("outputs", VECTORS)]


class Floors:
    """The kernels of ``kernel_floors.cu``, compiled for the GPU there is."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.opfuse_floor
        self._run.argtypes = [
            ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Tensors),
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p,
        ]  # fmt: skip

    @classmethod
    def build(cls) -> Floors | None:
        """None where there is no nvcc, or it fails."""
        major, minor = torch.cuda.get_device_capability()
        try:
            return cls(compiled([SOURCE], f"-arch=sm_{major}{minor}"))
        except (FileNotFoundError, subprocess.CalledProcessError):
            return None

    def nothing(self) -> Launch:
        """An empty kernel."""
        return lambda _: self._launch("nothing", _Tensors(), (1, 1), 0, False)

    def ways(self, op: str, shape: tuple[int, int], sets: int) -> dict[str, list[Launch]]:
        """How to move what ``op`` moves, fp16 of ``shape``: alone, and with a sum over each row.

        Launches take turns with ``sets`` sets of tensors.
        """
        read, written = (
            torch.randn(sets, 2, shape[0] * shape[1], device="cuda").half() for _ in range(2)
        )
        weights = torch.randn(2, shape[1], device="cuda").half()
        calls = [
            _Tensors(*(VECTORS(*(t.data_ptr() for t in pair)) for pair in (a, weights, b)))
            for a, b in zip(read, written, strict=True)
        ]

        def way(warps: int, with_sum: bool) -> Launch:
            def launch(index: int) -> object:
                self._launch(op, calls[index % sets], shape, warps, with_sum)
                return read, weights, written  # alive while the graph is

            return launch

        ways = {"move": [way(warps, False) for warps in WARPS]}
        if op in NORMS:
            ways["sum"] = [way(warps, True) for warps in WARPS]
        return ways

    def _launch(
        self, op: str, tensors: _Tensors, shape: tuple[int, int], warps: int, with_sum: bool
    ) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        failed = self._run(op.encode(), with_sum, ctypes.byref(tensors), *shape, warps, stream)
        if failed:
            raise RuntimeError(f"{op}: CUDA error {failed}")
