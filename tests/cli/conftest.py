"""Runs the command line in this process or in one of its own, and builds small models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import opfuse
from models import tiny
from opfuse.cli import main
from tests import locked as locks
from tests.gate import planted

SOURCE = Path(sys.modules["opfuse"].__file__).parent.parent


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def refused(self, code: int, *parts: str) -> None:
        """Assert one clear error that names the things and a fix, and nothing of Python's."""
        assert self.code == code, self.err
        assert self.err.count("opfuse: error:") == 1, self.err
        assert "Traceback" not in self.err
        message = self.err[self.err.index("opfuse: error:") :]
        assert "\n  fix: " in message
        assert [part for part in parts if part not in message] == [], message


@pytest.fixture
def environment() -> dict[str, str]:
    """Variables under which a new interpreter finds the package that is tested."""
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


# Root reads and writes everything; without its capabilities it is bound by the file modes.
_POWERLESS = """
import ctypes, runpy
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
runpy.run_module("opfuse", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def cli(capsys):
    """Run the command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def spawn(environment):
    """Run the command line in a process of its own; options go to subprocess.run."""

    def run(*arguments: object, powerless: bool = False, **options: object) -> Result:
        start = ["-c", _POWERLESS] if powerless else ["-m", "opfuse"]
        done = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def llama(tmp_path) -> Path:
    """A one-layer Llama."""
    return tiny.llama(layers=1).write(tmp_path / "llama.onnx")


@pytest.fixture
def old_output(tmp_path) -> Path:
    """An output of an earlier run, which a failed run must not touch."""
    path = tmp_path / "fused.onnx"
    path.write_bytes(b"the old output")
    yield path
    assert path.read_bytes() == b"the old output"
    assert [item.name for item in tmp_path.iterdir() if item.name.endswith(".tmp")] == []


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Path:
    """A folder with a model and its lock."""
    folder = tmp_path_factory.mktemp("locked")
    model = planted.save(folder / "bert.onnx")
    assert opfuse.check(model, folder / locks.LOCK, update=True).written
    return folder


@pytest.fixture
def place(locked, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, as the working directory."""
    shutil.copytree(locked, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
