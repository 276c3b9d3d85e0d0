"""The versions that a bug report needs, read without importing any of the packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from opfuse import __version__
from opfuse.stages.library import library_version

_PACKAGES = ("onnx", "onnx-graphsurgeon", "onnxruntime")
_ENGINES = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}


def versions() -> str:
    """One line for opfuse and each thing that it runs on."""
    lines = [f"opfuse {__version__} (Python {platform.python_version()})"]
    lines += [f"{name} {_installed(name) or 'not installed'}" for name in _PACKAGES]
    for name, packages in _ENGINES.items():
        found = next((text for text in map(_installed, packages) if text), "not installed")
        lines.append(f"{name} {found}")
    return "\n".join([*lines, f"plugin library {library_version()}"])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
