"""All ranks of a sharded model on as many GPUs: right, timed, and gone together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import opfuse
from opfuse.engine import gpu
from opfuse.runtime.bundle import Bundle
from opfuse.runtime.schedule import EngineStep

MODEL = Path(__file__).parents[2] / "models" / "llama_fp16.onnx"
OPFUSE = (sys.executable, "-m", "opfuse")
SIZES = "input_ids:2x40,attention_mask:2x40,position_ids:2x40"


@pytest.fixture(scope="module", params=[2, 4])
def size(request: pytest.FixtureRequest) -> int:
    """How many ranks."""
    if gpu.count() < request.param:
        pytest.skip(f"not run: it takes {request.param} GPUs")
    return int(request.param)


@pytest.fixture(scope="module")
def folder(size: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ranks with a bundle each."""
    pytest.importorskip("cuda.bindings")
    path = tmp_path_factory.mktemp("together") / f"tp{size}"
    opfuse.shard(MODEL, path, size, shard_vocab=True, prove=False)
    for rank in range(size):
        build(path / f"rank{rank}.onnx")
    return path


def build(model: Path) -> Path:
    """The bundle beside a rank's model."""
    path = model.with_suffix(".opfuse")
    opfuse.build(model, path, backend="segmented", lower="plugin", prove=False)
    return path


def run(*words: object, starter: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    line = [*starter, *OPFUSE, *map(str, words)]
    root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return subprocess.run(
        line, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, **root}
    )


STARTERS = {
    "opfuse": (),
    "torchrun": ("torchrun", "--nproc-per-node", "{size}", "--no-python"),
    "mpirun": ("mpirun", "-n", "{size}"),
}


@pytest.mark.parametrize("name", STARTERS)
def test_all_ranks_compute_what_the_model_does(folder: Path, size: int, name: str) -> None:
    starter = [word.format(size=size) for word in STARTERS[name]]
    if starter and shutil.which(starter[0]) is None:
        pytest.skip(f"not run: there is no {name}")
    words = ("verify", "--tp", size, folder, MODEL, "--optShapes", SIZES, "--json")
    done = run(*words, starter=starter)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert 0 < found["max_rel_err"] < found["tolerance"]


def test_ranks_of_several_engines(tmp_path: Path, size: int) -> None:
    """TensorRT has engines between the collectives, one of which runs several times."""
    model = MODEL.with_name("gpt2_fp16.onnx")
    opfuse.shard(model, tmp_path / "ranks", size, prove=False)
    for rank in range(size):
        path = build(tmp_path / "ranks" / f"rank{rank}.onnx")
        steps = [step for step in Bundle.open(path).schedule.steps if isinstance(step, EngineStep)]
        assert 1 < len({step.engine for step in steps}) < len(steps)
    sizes = ("--optShapes", SIZES.rpartition(",")[0], "--json")
    for words in (
        ("verify", "--tp", size, path.parent, model),
        ("bench", "--tp", size, path.parent),
    ):
        done = run(*words, *sizes)
        assert done.returncode == 0, done.stderr


def test_all_ranks_are_timed(folder: Path, size: int) -> None:
    words = ("--iterations", 20, "--optShapes", SIZES, "--json")
    done = run("bench", "--tp", size, folder, *words)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["engines"]
    assert [item["rank"] for item in found["ranks"]] == list(range(size))
    assert all(0 < item["collectives_us"] < 1e5 for item in found["ranks"])


def test_kill_9_of_a_rank_that_computes(folder: Path, size: int) -> None:
    words = ("--tp", str(size), str(folder), "--iterations", "100000000", "--optShapes", SIZES)
    first = subprocess.Popen([*OPFUSE, "bench", *words], stderr=subprocess.PIPE, text=True)
    try:
        victim = _engine_of_rank_1(first.pid)
        time.sleep(3)
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
    assert (first.returncode, time.monotonic() - began < 30) == (4, True), said
    assert "rank 1 is gone" in said


def _engine_of_rank_1(pid: int) -> int:
    """The process that holds the GPU of rank 1: a child of the rank, which is one of ``pid``."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for rank in _children(pid):
            environment = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
            if b"RANK=1" in environment:
                for child in _children(rank):
                    maps = Path(f"/proc/{child}/maps").read_text()
                    if "nvidia" in maps:
                        return child
        time.sleep(0.1)
    raise AssertionError("rank 1 opens no GPU")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
