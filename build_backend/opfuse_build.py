"""PEP 517 backend: scikit-build-core, plus what the plugin library needs and this machine lacks.

A machine with only g++ and PyPI can build: the CUDA compiler then comes as wheels, and ``pip``
lets CMake fetch TensorRT's headers (``cmake/NvInferHeaders.cmake``).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from scikit_build_core import build as base
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, "list[str] | str"]

# One minor version: the parts of a CUDA toolkit belong together.
CUDA_COMPILER = (
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
)


def has_nvcc() -> bool:
    """Whether this machine has a CUDA compiler."""
    return bool(
        os.environ.get("CUDACXX")
        or shutil.which("nvcc")
        or Path("/usr/local/cuda/bin/nvcc").is_file()
    )


def use_wheel_nvcc() -> None:
    """Points CMake at the nvcc of the wheels where the machine has no other."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        nvcc = Path(folder, "cu13", "bin", "nvcc")
        if nvcc.is_file() and not has_nvcc():
            os.environ["CUDACXX"] = str(nvcc)
            # The wheels have lib/ where nvcc looks for lib64/; gcc links from here too.
            paths = [str(nvcc.parent.parent / "lib"), os.environ.get("LIBRARY_PATH", "")]
            os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))


def missing_tools() -> list[str]:
    """The build requirements that this machine adds to scikit-build-core's own."""
    compiler = [] if has_nvcc() else list(CUDA_COMPILER)
    return [*compiler, "pip"]  # pip: CMake may have to install TensorRT's headers


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """PEP 517 hook: what building a wheel needs here."""
    return [*base.get_requires_for_build_wheel(config_settings), *missing_tools()]


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """PEP 660 hook: what an editable install needs here."""
    return [*base.get_requires_for_build_editable(config_settings), *missing_tools()]


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 517 hook: builds the wheel, plugin library included."""
    use_wheel_nvcc()
    wheel: str = base.build_wheel(wheel_directory, config_settings, metadata_directory)
    return wheel


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 660 hook: builds the plugin library and links the sources."""
    use_wheel_nvcc()
    wheel: str = base.build_editable(wheel_directory, config_settings, metadata_directory)
    return wheel
