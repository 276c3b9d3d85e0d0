"""Compiles what a benchmark launches beside the plugin library."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def compiled(sources: Sequence[Path], *options: str, kept_as: Path | None = None) -> ctypes.CDLL:
    """A shared library of ``sources``, loaded.

    Args:
        sources: What nvcc compiles.
        options: Of nvcc, besides.
        kept_as: A file that is loaded as it is where it exists, and made otherwise.

    Raises:
        FileNotFoundError: There is no nvcc.
        subprocess.CalledProcessError: It fails; it has said why on stderr.
    """
    if kept_as and kept_as.exists():
        return ctypes.CDLL(str(kept_as.resolve()))
    with tempfile.TemporaryDirectory() as folder:
        built = kept_as.resolve() if kept_as else Path(folder) / "compiled.so"
        command = ["nvcc", "-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC", *options]
        subprocess.run([*command, "-o", built, *sources], check=True)
        return ctypes.CDLL(str(built))
