"""TensorRT for RTX, 1.7 and newer: builds engines on machines without a GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from opfuse.engine import wheel
from opfuse.engine.backend import EngineInfo, Request

_OLDEST = (1, 7)  # older ones answer "Op type X is not supported" to every plugin


class TensorRtRtx:
    """The default backend."""

    name = "tensorrt-rtx"
    build = "opfuse.engine.tensorrt_rtx:build"
    uses_timing_cache = False  # it has no effect, and asks for a GPU

    def lacks(self) -> tuple[str, str] | None:
        """A wheel of 1.7 or newer, if that is not installed."""
        wheels = wheel.WHEELS["tensorrt-rtx"]
        return wheel.lacks("TensorRT for RTX", "tensorrt_rtx", wheels, _OLDEST, _INSTALL)

    def version(self) -> str:
        """That of the wheel."""
        return wheel.installed(wheel.WHEELS["tensorrt-rtx"])

    def environment(self, folder: Path) -> dict[str, str]:
        """A library path on which ``libtensorrt_rtx.so`` is found.

        On the first plugin the parser opens its library under that name, and the wheel has it as
        ``libtensorrt_rtx.so.1`` only; the process would end in std::terminate.
        """
        spec = find_spec("tensorrt_rtx_libs")
        for place in (spec.submodule_search_locations or []) if spec else []:
            for library in Path(place).glob("libtensorrt_rtx.so.*"):
                (folder / "libtensorrt_rtx.so").symlink_to(library)
                paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
                return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
        return {}


_INSTALL = "pip install 'tensorrt-rtx-cu13>=1.7'"


def build(request: Request) -> EngineInfo:
    """Build in this process, which is a child made for it."""
    import tensorrt_rtx

    from opfuse.engine import network

    return network.build(tensorrt_rtx, TensorRtRtx.name, request)
