"""Builds the contract test under sanitizers, and finds the plugin library for the other tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from opfuse.errors import MissingComponent
from opfuse.runtime import library

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "contract"


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    """The library that this installation would use."""
    try:
        return library.find()
    except MissingComponent as error:
        pytest.skip(f"not run: {error.what}")


@pytest.fixture(scope="session")
def contract() -> tuple[Path, Path]:
    """The contract test and a plugin library, both with AddressSanitizer and UBSan."""
    if not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
        pytest.skip("not run: building the library under sanitizers needs nvcc")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one worker builds, the others wait
        options = ["SANITIZE=ON", "TESTS=ON", "CUDA_ARCHITECTURES=90-real"]
        environment = {k: v for k, v in os.environ.items() if k != "OPFUSE_CUDA_ARCHITECTURES"}
        configure = ["cmake", "-S", ROOT, "-B", BUILD, *(f"-DOPFUSE_{o}" for o in options)]
        for command in (configure, ["cmake", "--build", BUILD, "--parallel", "2"]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "tests" / "plugins" / "opfuse_contract", BUILD / "libopfuse_plugins.so"
