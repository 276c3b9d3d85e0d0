"""examples/cpp_loader: it compiles, links, registers the plugins, and says what is missing.

No engine runs here without a GPU. TensorRT's lean runtime stands in for the whole one.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opfuse.engine import gpu
from opfuse.runtime import library
from tests.engine_models import ROOT, plugins

BUILD = ROOT / "build" / "loader"
NEWEST_TAG = "v11.1"
LIBRARIES = {
    "lean": ("tensorrt_lean_libs", "libnvinfer_lean.so.11"),
    "rtx": ("tensorrt_rtx_libs", "libtensorrt_rtx.so.1"),
}


def major(include: Path) -> int:
    text = (include / "NvInferVersion.h").read_text()
    return int(re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)[1])


def from_pypi() -> Path:
    """The headers that the plugin library is compiled with where there are no others: 10.14."""
    target = BUILD / "headers10"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
               "--upgrade", "--require-hashes", "--target", target,
               "-r", ROOT / "cmake" / "nvinfer-headers.txt"]  # fmt: skip
    if not target.exists():
        subprocess.run(command, check=True, capture_output=True)
    return target / "kernel_lens" / "include" / "tensorrt"


def from_git() -> Path:
    target = BUILD / "headers11"
    clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", NEWEST_TAG, "--sparse",
             "--filter=blob:none", "https://github.com/NVIDIA/TensorRT.git", target]  # fmt: skip
    if not (target / "include").exists():
        shutil.rmtree(target, ignore_errors=True)
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        for command in (clone, ["git", "-C", target, "sparse-checkout", "set", "include"]):
            subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    return target / "include"


def headers(wanted: int) -> Path:
    given = Path(os.environ.get("TENSORRT_ROOT", "/nowhere"), "include")
    if (given / "NvInferVersion.h").is_file() and major(given) == wanted:
        return given
    try:
        return from_pypi() if wanted == 10 else from_git()
    except (subprocess.SubprocessError, OSError):
        pytest.skip(f"not run: the headers of TensorRT {wanted} cannot be downloaded")


@pytest.fixture(scope="session")
def loader():
    """Builds the example with some headers and some library, as its CMakeLists.txt says."""
    cmake = shutil.which("cmake", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if not (shutil.which("nvcc") and cmake):
        pytest.skip("not run: the example needs the CUDA toolkit and cmake")

    def build(with_headers: int, against: str) -> Path:
        package, name = LIBRARIES[against]
        spec = importlib.util.find_spec(package)
        if spec is None:
            pytest.skip(f"not run: {package} is not installed")
        file = Path(spec.submodule_search_locations[0], name)
        BUILD.mkdir(parents=True, exist_ok=True)
        with (BUILD / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one worker builds, the others wait
            folder = BUILD / f"{against}{with_headers}"
            places = [f"-DTENSORRT_INCLUDE_DIR={headers(with_headers)}",
                      f"-DTENSORRT_LIBRARY={file}"]  # fmt: skip
            configure = [cmake, "-S", ROOT / "examples" / "cpp_loader", "-B", folder, *places]
            for command in (configure, [cmake, "--build", folder]):
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                assert "warning" not in done.stdout
        return folder / "loader"

    return build


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def engine(tmp_path) -> Path:
    path = tmp_path / "x.engine"
    path.write_bytes(b"ftrt, as far as anybody looks")
    return path


def test_it_registers_the_plugins_and_asks_for_a_gpu(loader, engine):
    if plugins() is None:
        pytest.skip("not run: the plugin library is not built")
    done = run(loader(11, "lean"), engine, "--plugins", plugins())
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"TensorRT 11\.\d+\.\d+, compiled with the headers of 11\.\d+", lines[0])
    assert lines[1:] == [f"plugin {op.name} 1" for op in library.describe(plugins()).ops]
    assert done.returncode == (3 if gpu.absent() else 4), done.stderr
    if gpu.absent():
        assert "engines run on an NVIDIA GPU, and there is none" in done.stderr


def test_a_library_that_is_none(loader, engine):
    done = run(loader(11, "lean"), engine, "--plugins", engine)
    assert done.returncode == 3
    assert f"cannot load the plugin library {engine}" in done.stderr


def test_headers_of_another_tensorrt_are_refused_before_any_call(loader, engine):
    """TensorRT for RTX 1.7 has the classes of TensorRT 11: with those of 10 calls go astray."""
    done = run(loader(10, "rtx"), engine, "--plugins", engine)
    assert done.returncode == 3
    assert re.match(r"TensorRT 1\.7\.\d+, compiled with the headers of 10\.14\n", done.stdout)
    assert "compile with its own" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage"),
        (["none.engine"], "cannot read none.engine"),
        (["a", "b"], "unknown argument b"),
        (["a", "--plugin", "x"], "unknown argument --plugin"),
        (["a", "--plugins"], "--plugins needs a value"),
        (["a", "--shape", "x"], "NAME:1x128"),
        (["a", "--shape", "x:1x0"], "cannot read the shape 1x0"),
        (["a", "--shape", "x:1xa"], "cannot read the shape 1xa"),
        (["a", "--shape", "x:1x1x1x1x1x1x1x1x1"], "cannot read the shape"),
    ],
)
def test_bad_arguments(loader, arguments, says):
    done = run(loader(10, "rtx"), *arguments)
    assert done.returncode == 2
    assert says in done.stderr
