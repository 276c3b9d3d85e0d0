"""TensorRT itself, 10.13 and newer: builds on the GPU that the engine is for."""

from __future__ import annotations

from pathlib import Path

from opfuse.engine import gpu, wheel
from opfuse.engine.backend import EngineInfo, Request

_OLDEST = (10, 13)
_INSTALL = "pip install 'opfuse[tensorrt]'"


class TensorRt:
    """The production backend."""

    name = "tensorrt"
    build = "opfuse.engine.tensorrt:build"
    uses_timing_cache = True

    def lacks(self) -> tuple[str, str] | None:
        """A wheel of 10.13 or newer, or a GPU."""
        missing = wheel.lacks("TensorRT", "tensorrt", wheel.WHEELS["tensorrt"], _OLDEST, _INSTALL)
        if missing is None and gpu.absent():
            return (
                f"TensorRT builds on a GPU: {gpu.absent()}",
                "run on a machine with one, or use --backend tensorrt-rtx, which needs none",
            )
        return missing

    def version(self) -> str:
        """That of the wheel."""
        return wheel.installed(wheel.WHEELS["tensorrt"])

    def environment(self, folder: Path) -> dict[str, str]:
        """Nothing; the wheel finds its own libraries."""
        return {}


def build(request: Request) -> EngineInfo:
    """Build in this process, which is a child made for it."""
    import tensorrt

    from opfuse.engine import network

    return network.build(tensorrt, TensorRt.name, request)
