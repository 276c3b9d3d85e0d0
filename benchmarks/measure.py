"""Runs one process and says what it took; writes a benchmark's figures beside what they hang on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
OPFUSE = (sys.executable, "-m", "opfuse")


@dataclass(frozen=True)
class Run:
    """One process from start to end.

    ``seconds`` is wall time; ``cpu_seconds`` the processor time of the process and of the children
    that it waited for; ``peak_bytes`` the largest sum of resident memory over its process tree,
    or None where it was not sampled. ``output`` is stdout and stderr together.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    output: str

    @property
    def last_line(self) -> str:
        """What a failed process said last."""
        return (self.output.strip().splitlines() or ["(no output)"])[-1]


def run(command: Sequence[str | Path], *, sample_memory: bool = False) -> Run:
    """Runs ``command`` to its end.

    Args:
        command: The program and its arguments.
        sample_memory: Look at the resident memory of the process tree every 10 ms.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        start = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        peak = _sampled(process.pid) if sample_memory else None
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        cpu = usage.ru_utime + usage.ru_stime
        if peak is not None:
            # The kernel's own peak of one process, which a sample every 10 ms may have missed.
            peak = max(peak, usage.ru_maxrss * 1024)
        return Run(process.returncode, seconds, cpu, peak, log.read())


def _sampled(pid: int) -> int:
    peak = 0
    root = psutil.Process(pid)
    while True:
        try:
            if root.status() == psutil.STATUS_ZOMBIE:
                return peak
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return peak
        peak = max(peak, sum(map(_resident, family)))
        time.sleep(0.01)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0  # it ended between being listed and being asked


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_name(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def driver() -> str:
    """The version of NVIDIA's driver; of the first GPU where there are several."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else ""


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """The commit of these files; OPFUSE_COMMIT where they were sent without their repository."""
    if given := os.environ.get("OPFUSE_COMMIT"):
        return given
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(name: str, figures: dict[str, Any]) -> Path:
    """Writes ``results/<name>-<date>.json`` and returns its path."""
    now = datetime.now(timezone.utc)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{now:%Y-%m-%d}.json"
    content = {"date": now.isoformat(timespec="seconds"), "machine": machine(), **figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns: the first to the left, the others to the right."""
    print(*table(header, rows), sep="\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of columns: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    made = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        made.append("  ".join(cells).rstrip())
    return made
