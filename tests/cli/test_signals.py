"""Interrupts, limits, and closed pipes: the right code at once, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from models import tiny

SLOW = 60  # seconds that a test waits at most


@pytest.fixture
def deep(tmp_path):
    """A model that takes seconds to prove and to build."""
    folder = tmp_path / "model"
    folder.mkdir()
    return tiny.llama(layers=24).write(folder / "deep.onnx")


@pytest.fixture
def start():
    """Start a command; it is killed when the test ends."""
    running = []

    def run(environment, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "opfuse", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def wait_for_stage(process, stage):
    """Read stderr until the stage before the one of interest has ended."""
    deadline = time.monotonic() + SLOW
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        if line.startswith(f"opfuse: {stage} "):
            return
        assert line, "the command ended early"
    pytest.fail(f"{stage} never ended")


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
@pytest.mark.parametrize("stage", ["fuse", "lower"], ids=["while proving", "while building"])
def test_interrupt(start, environment, deep, old_output, number, code, says, stage):
    options = ["--backend", "tensorrt-rtx"]
    if stage == "lower":
        pytest.importorskip("tensorrt_rtx")
        options.append("--no-prove")
    process = start(environment, "build", deep, "-o", old_output, *options)
    wait_for_stage(process, stage)
    time.sleep(0.7)
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=SLOW)
    assert process.returncode == code, err
    assert time.monotonic() - began < 5
    assert says in err
    assert "Traceback" not in err


def test_time_limit(cli, deep, old_output):
    result = cli("fuse", deep, "-o", old_output, "--time-limit", "0.5")
    result.refused(124, "0.5 s")


def test_what_a_killed_run_left_is_swept(cli, llama, tmp_path):
    from opfuse.files import Pending

    child = os.fork()
    if child == 0:
        with Pending(tmp_path):
            os._exit(0)
    os.waitpid(child, 0)
    assert list(tmp_path.glob(".opfuse-*.tmp"))
    assert cli("fuse", llama, "-o", tmp_path / "out.onnx", "--no-prove").code == 0
    assert list(tmp_path.glob(".opfuse-*.tmp")) == []


def test_scratch_of_a_killed_run_is_swept(tmp_path, monkeypatch):
    from opfuse.files import scratch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        with scratch() as folder:
            (folder / "weights").write_bytes(bytes(100))
            os._exit(0)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    with scratch() as own, scratch() as another:
        assert not left.exists()
        assert own.is_dir()
        assert another.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_nohup(environment, deep, tmp_path):
    """A caller that has SIGHUP ignored means it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "opfuse", "fuse", deep, "-o", tmp_path / "f.onnx", "--no-prove"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_stage(process, "load")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=SLOW)
    assert process.returncode == 0, err


def test_a_time_limit_of_ages_is_none(cli, llama, tmp_path):
    result = cli("fuse", llama, "-o", tmp_path / "f.onnx", "--time-limit", "1e20")
    assert result.code == 0, result.err


def test_closed_pipe(environment, llama):
    line = f'"{sys.executable}" -m opfuse explain "{llama}" --json | head -c 1'
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "{")
    assert "Error" not in run.stderr


def test_our_bug_keeps_its_traceback(cli, llama, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("no foresight")

    monkeypatch.setattr("opfuse.stages.load.load", broken)
    result = cli("explain", llama)
    assert result.code == 70
    assert "ZeroDivisionError: no foresight" in result.err
    assert "bug in opfuse" in result.err


def test_debug_shows_where_a_refusal_comes_from(cli, tmp_path):
    result = cli("explain", tmp_path / "no.onnx", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
