"""Compiles what a benchmark launches beside the plugin library."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def compiled(sources: Sequence[Path], *options: str) -> ctypes.CDLL:
    """A shared library of ``sources``, loaded.

    Raises:
        FileNotFoundError: There is no nvcc.
        subprocess.CalledProcessError: It fails; it has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "compiled.so"
        command = ["nvcc", "-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC", *options]
        subprocess.run([*command, "-o", built, *sources], check=True)
        return ctypes.CDLL(str(built))
