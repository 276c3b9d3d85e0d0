"""Starts a process for each rank on this host, and ends them all when one of them fails."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from opfuse.errors import EngineError

_LAST_S = 30.0  # for the others, once one has failed
_LOOK_S = 0.05
_TAIL = 40  # lines of what a rank has said
# As in child.py: the working directory is no place for modules. A rank dies with this process.
_START = """
import ctypes, json, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
parent, path, *argv = sys.argv[1:]
if os.getppid() != int(parent):
    os._exit(0)
sys.path[:] = json.loads(path)
from opfuse.cli import main
sys.exit(main(argv, interruptible=True))
"""


def start(argv: Sequence[str], ranks: int) -> int:
    """Run the command line ``argv`` as each of ``ranks`` ranks; rank 0 prints.

    What torchrun sets is set, so each of them knows which rank it is.

    Returns:
        The exit code: 0 where all end so, else that of the rank that failed first.

    Raises:
        EngineError: A signal killed a rank.
    """
    with _processes(argv, ranks) as (processes, said):
        first = _wait(processes)
        for rank, (process, text) in enumerate(zip(processes, said, strict=True)):
            if rank and process.returncode:
                _pass_on(rank, text)
        if first is None:
            return 0
        code = processes[first].returncode
        if code < 0:
            name = signal.Signals(-code).name
            raise EngineError(f"rank {first} was killed by {name}", "see what it printed")
        return code


@contextmanager
def _processes(
    argv: Sequence[str], ranks: int
) -> Iterator[tuple[list[subprocess.Popen[bytes]], list[IO[bytes] | None]]]:
    processes: list[subprocess.Popen[bytes]] = []
    said: list[IO[bytes] | None] = []
    place = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OPFUSE_JOB": secrets.token_hex(8),
    }
    command = [sys.executable, "-c", _START, str(os.getpid()), json.dumps(sys.path), *argv]
    try:
        for rank in range(ranks):
            # The others print to files: only what a rank says that fails is worth reading.
            text: IO[bytes] | None = None
            if rank:
                text = tempfile.TemporaryFile()  # noqa: SIM115
            said.append(text)
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=None if text is None else subprocess.DEVNULL,
                    stderr=text,
                    env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
        yield processes, said
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for text in said:
            if text is not None:
                text.close()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; the rank that failed first. The others then have half a minute."""
    first, deadline = None, None
    while any(process.poll() is None for process in processes):
        if first is None:
            first = _failed(processes)
            deadline = None if first is None else time.monotonic() + _LAST_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    return _failed(processes) if first is None else first


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, one in enumerate(processes) if one.poll()), None)


def _pass_on(rank: int, text: IO[bytes] | None) -> None:
    if text is None:
        return
    text.seek(0)
    for line in text.read().decode(errors="replace").splitlines()[-_TAIL:]:
        sys.stderr.write(f"rank {rank}: {line}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
