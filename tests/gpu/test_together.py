"""All ranks of a sharded model on as many GPUs: right, timed, and gone together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import opfuse
from opfuse.engine import gpu

MODEL = Path(__file__).parents[2] / "models" / "llama_fp16.onnx"
OPFUSE = (sys.executable, "-m", "opfuse")
SIZES = "input_ids:2x40,attention_mask:2x40,position_ids:2x40"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with a bundle each."""
    if gpu.count() < 2:
        pytest.skip("not run: it takes two GPUs")
    pytest.importorskip("cuda.bindings")
    path = tmp_path_factory.mktemp("together") / "tp2"
    opfuse.shard(MODEL, path, 2, shard_vocab=True, prove=False)
    for rank in range(2):
        own = path / f"rank{rank}.onnx"
        options = {"backend": "segmented", "lower": "plugin", "prove": False}
        opfuse.build(own, own.with_suffix(".opfuse"), **options)
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    line = [*OPFUSE, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)


def test_all_ranks_compute_what_the_model_does(folder: Path) -> None:
    done = run("verify", "--tp", 2, folder, MODEL, "--optShapes", SIZES, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert 0 < found["max_rel_err"] < found["tolerance"]


def test_all_ranks_are_timed(folder: Path) -> None:
    words = ("--iterations", 20, "--optShapes", SIZES, "--json")
    done = run("bench", "--tp", 2, folder, *words)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["engines"]
    assert [item["rank"] for item in found["ranks"]] == [0, 1]
    assert all(0 < item["collectives_us"] < 1e5 for item in found["ranks"])


def test_kill_9_of_a_rank_that_computes(folder: Path) -> None:
    words = ("--tp", "2", str(folder), "--iterations", "100000000", "--optShapes", SIZES)
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
