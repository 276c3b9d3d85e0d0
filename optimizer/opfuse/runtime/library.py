"""Finds the plugin library, and says what is in it, without TensorRT and without a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import opfuse
from opfuse.errors import MissingComponent
from opfuse.runtime import abi
from opfuse.runtime.abi import OpInfo

__all__ = ["ENVIRONMENT", "FILE_NAME", "LibraryInfo", "OpInfo", "describe", "find"]

ENVIRONMENT = "OPFUSE_PLUGINS"
FILE_NAME = "libopfuse_plugins.so"


@dataclass(frozen=True)
class LibraryInfo:
    """What a plugin library says of itself.

    Args:
        version: The opfuse version it was built from.
        ops: Its ops, sorted by name.
        architectures: What it has kernels for: ``"90-real"`` is a cubin, ``"100-virtual"`` is PTX,
            and ``"100"`` is both.
        headers: The TensorRT headers it was compiled with, such as ``"10.14"``.
    """

    version: str
    ops: tuple[OpInfo, ...]
    architectures: tuple[str, ...]
    headers: str


def find(explicit: Path | None = None) -> Path:
    """The plugin library: ``explicit``, else the file ``OPFUSE_PLUGINS`` names, else the package's.

    Raises:
        MissingComponent: There is no such file.
    """
    if explicit is not None:
        return _existing(explicit, "give the path of a libopfuse_plugins.so")
    if named := os.environ.get(ENVIRONMENT):
        return _existing(Path(named), f"correct or unset {ENVIRONMENT}, which names it")
    # An editable install has the sources in one folder of the package and the library in another.
    candidates = [Path(folder, "lib", FILE_NAME) for folder in opfuse.__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    what = f"the plugin library is not built: no {' and no '.join(map(str, candidates))}"
    raise MissingComponent(what, "install opfuse with `pip install .`, or run `make engine`")


def describe(path: Path) -> LibraryInfo:
    """What the plugin library at ``path`` holds, read over its C ABI.

    Raises:
        MissingComponent: The file cannot be loaded, or is no plugin library of this version.
    """
    library = abi.load(path)
    headers = library.opfuse_tensorrt_headers()
    # NV_TENSORRT_VERSION is major * 10000 + minor * 100 + patch from 10.0 on.
    return LibraryInfo(
        version=library.opfuse_version().decode(),
        ops=abi.ops(library),
        architectures=tuple(library.opfuse_architectures().decode().split()),
        headers=f"{headers // 10000}.{headers // 100 % 100}",
    )


def _existing(path: Path, fix: str) -> Path:
    if not path.is_file():
        raise MissingComponent(f"there is no plugin library at {path}", fix)
    return path.resolve()
