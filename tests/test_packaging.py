"""The wheel: one top-level name, the console command, and no tests, models, or C++ sources."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel without its compiled part, which takes minutes."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    command += ["--config-settings=wheel.cmake=false", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("opfuse-*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    info = {top for top in tops if top.endswith(".dist-info")}
    assert tops - info == {"opfuse"}
    assert len(info) == 1


def test_wheel_has_every_module_and_nothing_built_by_hand(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = (ROOT / "optimizer" / "opfuse").rglob("*.py")
    assert {path.relative_to(ROOT / "optimizer").as_posix() for path in sources} <= names
    assert "opfuse/py.typed" in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".cu", ".cuh"))]


def test_wheel_is_for_any_python_of_linux(wheel: zipfile.ZipFile) -> None:
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "opfuse = opfuse.__main__:main" in wheel.read(entry).decode()
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert "Requires-Python: >=3.10" in wheel.read(metadata).decode()
