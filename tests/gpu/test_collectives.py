"""Collectives between processes: with one GPU they share it, and take turns on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import layer_norm, rms_norm

LIMIT_S = 300


def start(job: str, rank: int, size: int, folder: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.gpu.ranks", job, str(rank), str(size), str(folder)]
    return subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(job: str, size: int, folder: Path, **variables: str) -> None:
    """All ranks end with 0."""
    if not torch.cuda.is_available():
        pytest.skip("not run: no GPU")
    if variables.get("OPFUSE_TEST_NCCL") != "" and torch.cuda.device_count() < size:
        pytest.skip("not run: NCCL needs a GPU for each rank")
    folder.mkdir(exist_ok=True)
    ranks = [start(job, rank, size, folder, **variables) for rank in range(size)]
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    assert [process.returncode for process in ranks] == [0] * size, "\n".join(outputs)
    print(outputs[0])


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_one_rank_is_all(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, norm: str
) -> None:
    for rows, cols, offset in [(1, 1, 0), (3, 7, 1), (130, 768, 0), (9, 4096, 0), (2, 40000, 0)]:
        buffers = Buffers(offset)
        shapes = [(rows, cols), (rows, cols), *[(cols,)] * (3 if norm == "layer" else 2)]
        x, residual, gamma, *rest = (
            buffers.place(torch.randn(shape, generator=generator, device="cuda").to(dtype))
            for shape in shapes
        )
        y, total = buffers.empty(x.shape, dtype), buffers.empty(x.shape, dtype)
        inputs = [x, residual, gamma, *rest]
        runner("AllReduceAddNorm", {"norm": norm, "epsilon": 1e-5}, inputs, [y, total])
        expected = x.double() + residual.double() + rest[-1].double()
        runner.compare("AllReduceAddNorm of one, sum", total, expected)
        if norm == "layer":
            normed = layer_norm(total, gamma, rest[0], 1e-5)
        else:
            normed = rms_norm(total, gamma, 1e-5)
        runner.compare("AllReduceAddNorm of one, y", y, normed)
        for op in ("AllReduce", "AllGather"):
            copy = buffers.empty(x.shape, dtype)
            runner(op, {}, [x], [copy])
            assert torch.equal(copy, x)
        buffers.check_guards()


@pytest.mark.parametrize("way", ["one-shot", "two-shot"])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_against_float64(tmp_path: Path, size: int, way: str) -> None:
    run("values,gathers,specials,copies", size, tmp_path, OPFUSE_ALLREDUCE=way, OPFUSE_TEST_NCCL="")


@pytest.fixture
def nccl() -> str:
    """Its library."""
    found = pytest.importorskip("nvidia.nccl", reason="not run: NCCL is not installed")
    return str(Path(found.__path__[0], "lib", "libnccl.so.2"))


def test_by_nccl(tmp_path: Path, nccl: str) -> None:
    run("gathers,replays", 2, tmp_path, OPFUSE_ALLREDUCE="nccl", OPFUSE_TEST_NCCL=nccl)


@pytest.mark.parametrize("size", [3, 4])
def test_large_sums(tmp_path: Path, nccl: str, size: int) -> None:
    run("large", size, tmp_path, OPFUSE_TEST_NCCL=nccl)


@pytest.mark.parametrize("way", ["one-shot", "two-shot"])
def test_graphs_are_replayed(tmp_path: Path, way: str) -> None:
    run("replays", 2, tmp_path, OPFUSE_ALLREDUCE=way, OPFUSE_TEST_NCCL="")


def test_who_is_late_slows_nothing_else(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("not run: ranks that share a GPU are slow")
    run("skew", 2, tmp_path, OPFUSE_TEST_NCCL="")


@pytest.mark.parametrize("job", ["abort", "timeout"])
def test_nobody_waits_for_ever(tmp_path: Path, job: str) -> None:
    run(job, 2, tmp_path, OPFUSE_TEST_NCCL="")
