"""Segmented bundles: TensorRT builds the segments, and the plugins run between them.

For any TensorRT, also one without plugin support: TensorRT for RTX before 1.7 is the only one that
has no support for plugins and runs on compute capability 9.0.
"""

from __future__ import annotations

from pathlib import Path

from opfuse import child
from opfuse.engine import wheel
from opfuse.engine.backend import EngineInfo, Request
from opfuse.engine.tensorrt import TensorRt
from opfuse.engine.tensorrt_rtx import TensorRtRtx

_OLDEST_RTX = (1, 4)


class Segmented:
    """The backend of bundles."""

    name = "segmented"
    build = "opfuse.engine.segmented:build"
    uses_timing_cache = False  # of several engines; each would need its own

    def lacks(self) -> tuple[str, str] | None:
        """Any TensorRT that opfuse can build with."""
        if TensorRt().lacks() is None:
            return None
        return wheel.lacks(
            "TensorRT for RTX",
            "tensorrt_rtx",
            wheel.WHEELS["tensorrt-rtx"],
            _OLDEST_RTX,
            "pip install tensorrt-rtx-cu13",
        )

    def version(self) -> str:
        """The TensorRT that builds the segments, with its version."""
        maker = TensorRt() if TensorRt().lacks() is None else TensorRtRtx()
        return maker.version() and f"{maker.name} {maker.version()}"

    def environment(self, folder: Path) -> dict[str, str]:
        """Nothing: no segment has a plugin."""
        return {}


def build(requests: list[Request]) -> list[EngineInfo]:
    """Build every segment in this process, which is a child made for it."""
    from opfuse.engine import network

    if TensorRt().lacks() is None:
        import tensorrt as api

        name = TensorRt.name
    else:
        import tensorrt_rtx as api

        name = TensorRtRtx.name
    built = []
    for index, request in enumerate(requests):
        text = f"segment {index + 1}"
        child.emit({"text": text, "done": index, "total": len(requests)})
        info = network.build(api, name, request)
        built.append(info)
    return built
