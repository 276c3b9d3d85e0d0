"""Kills opfuse with signal 9 at random moments of every stage, and looks at what is left.

An output has to be the old one or the whole new one, a cache may hold whole entries only, no
process may live on, and the next run has to work and leave nothing temporary. Run it from the
repository root:
``python -m benchmarks.kills --kills 100 --seed 0``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.measure import print_table
from models.tiny import llama
from opfuse.errors import InputError
from opfuse.files import file_hash
from opfuse.runtime import bundle

OLD = b"the output of an earlier run"
_GRACE_S = 5.0  # in which the child processes have to be gone
_BUILD = ["--backend", "tensorrt-rtx", "--lower", "leave"]


@dataclass
class Job:
    """A command with its outputs, each with what a whole one is."""

    name: str
    arguments: list[str]
    outputs: dict[Path, Callable[[Path], bool]]
    stages: list[tuple[str, float]] = field(default_factory=list)  # with the seconds of each


@dataclass
class Killed:
    """What one kill met and left."""

    job: str
    stage: str
    temporary: int
    faults: list[str]


class Ground:
    """A folder with a model, its outputs, a cache, and a temporary folder of its own.

    Args:
        root: An empty folder.
        layers: Of the model, which is a Llama.
    """

    def __init__(self, root: Path, layers: int = 1) -> None:
        self.root, self.out, self.cache = root, root / "out", root / "cache"
        self.temporary = root / "temporary"
        self._hashes: dict[Path, str] = {}
        for folder in (self.out, self.temporary):
            folder.mkdir()
        model = root / "llama.onnx"
        llama(layers=layers).write(model, external=True)
        self.jobs = list(self._jobs(model))
        for job in self.jobs:
            self._learn(job)
        self._expected = {path.name for path in self.out.iterdir()}

    def _jobs(self, model: Path) -> Iterator[Job]:
        out, cached = self.out, ["--cache", str(self.cache)]
        fused = [str(model), "-o", str(out / "fused.onnx"), "--report", str(out / "fused.json")]
        yield Job(
            "fuse", ["fuse", *fused], {out / "fused.onnx": self._same, out / "fused.json": _json}
        )
        engine = [str(model), "-o", str(out / "llama.engine"), "--report", str(out / "llama.json")]
        yield Job(
            "build",
            ["build", *engine, *_BUILD, *cached],
            {out / "llama.engine": self._same, out / "llama.json": _json},
        )
        bundle = [str(model), "-o", str(out / "llama.opfuse"), "--backend", "segmented"]
        yield Job("build segmented", ["build", *bundle, *cached, "--no-prove"],
                  {out / "llama.opfuse": _bundle})  # fmt: skip
        package = ["package", str(out / "llama.engine"), "--triton", str(out / "repository")]
        yield Job("package", package, {out / "repository" / "llama": _package})

    def _learn(self, job: Job) -> None:
        """Runs it once to the end: the hashes of its outputs, and how long each stage takes."""
        moments = [time.monotonic()]
        process, ended, thread = self._start(job)
        while process.poll() is None:
            moments += [time.monotonic()] * (len(ended) + 1 - len(moments))
            time.sleep(0.001)
        assert process.returncode == 0, f"{job.name} does not work"
        thread.join(_GRACE_S)
        moments += [time.monotonic()] * (len(ended) + 2 - len(moments))
        names = [*ended, "report" if ended else "all of it"]
        durations = [end - begin for begin, end in pairwise(moments)]
        job.stages = [*zip(names, durations, strict=True)]
        for path, whole in job.outputs.items():
            if whole == self._same:
                self._hashes[path] = _hash(path)

    def _same(self, path: Path) -> bool:
        return _hash(path) == self._hashes[path]

    def _start(self, job: Job) -> tuple[subprocess.Popen[str], list[str], threading.Thread]:
        """The process, the stages that have ended so far, and the thread that hears of them."""
        process = subprocess.Popen(
            [sys.executable, "-m", "opfuse", *job.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        ended: list[str] = []

        def listen() -> None:
            assert process.stderr is not None
            ended.extend(
                line.split()[1]
                for line in process.stderr
                if line.startswith("opfuse: ") and line.endswith(" s\n")
            )

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        return process, ended, thread

    def kill(self, number: int, source: random.Random) -> Killed:
        """Kills one run in the middle of a stage; the stages take turns."""
        job = self.jobs[number % len(self.jobs)]
        self._prepare(job, source)
        index = number // len(self.jobs) % len(job.stages)
        process, ended, thread = self._start(job)
        while len(ended) < index and process.poll() is None:
            time.sleep(0.001)
        time.sleep(source.uniform(0.0, job.stages[index][1]))
        children = _children(process)
        process.send_signal(signal.SIGKILL)
        finished = process.wait() != -signal.SIGKILL
        thread.join(_GRACE_S)
        left = psutil.wait_procs(children, timeout=_GRACE_S)[1]
        faults = [f"process {item.pid} lives on" for item in left]
        faults += [
            f"{path.name} is neither the old one nor whole"
            for path, whole in job.outputs.items()
            if not (_is_old(path) or whole(path))
        ]
        faults += self._broken_entries()
        stage = job.stages[min(len(ended), len(job.stages) - 1)][0]
        return Killed(job.name, "over" if finished else stage, len(self._left()), faults)

    def _prepare(self, job: Job, source: random.Random) -> None:
        """Puts an old output there or nothing, and sometimes an empty cache."""
        for path in job.outputs:
            if "repository" in path.parts:
                if source.random() < 0.5:
                    shutil.rmtree(path, ignore_errors=True)
            elif source.random() < 0.5:
                path.write_bytes(OLD)
            else:
                path.unlink(missing_ok=True)
        if source.random() < 0.7:
            shutil.rmtree(self.cache, ignore_errors=True)

    def finish(self, job: Job) -> list[str]:
        """Runs a job to its end after a kill; what is wrong then."""
        process, *_ = self._start(job)
        if process.wait() != 0:
            return [f"the next {job.name} ends with exit code {process.returncode}"]
        faults = [f"{path.name} is not right after the next {job.name}" for path, whole in
                  job.outputs.items() if not whole(path)]  # fmt: skip
        return faults + self._broken_entries()

    def tidy(self) -> list[str]:
        """Runs everything to its end: after that nothing temporary may be left."""
        faults = [fault for job in self.jobs for fault in self.finish(job)]
        faults += [f"{path} is left" for path in self._left()]
        odd = {path.name for path in self.out.iterdir()} ^ self._expected
        return faults + [f"{name} is new or gone" for name in sorted(odd)]

    def _left(self) -> list[Path]:
        return [*self.root.rglob(".opfuse-*.tmp"), *self.temporary.glob("opfuse-*")]

    def _broken_entries(self) -> list[str]:
        """Entries of the cache that do not end in the hash of what comes before."""
        faults = []
        for path in (self.cache / "v1").glob("[et]*/*"):
            data = path.read_bytes()
            if len(path.name) == 64 and hashlib.sha256(data[:-32]).digest() != data[-32:]:
                faults.append(f"entry {path.name[:12]} of the cache is torn")
        return faults


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _hash(path: Path) -> str:
    return file_hash(path) if path.is_file() else ""


def _is_old(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.read_bytes() == OLD)


def _bundle(path: Path) -> bool:
    """Whether every part of a bundle is as its manifest says; TensorRT's are not always equal."""
    try:
        bundle.Bundle.open(path)
    except InputError:
        return False
    return True


def _json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["schema"] == 1)
    except (OSError, ValueError, KeyError):
        return False


def _package(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / "opfuse.json").read_bytes())["sha256"]
    except (OSError, ValueError, KeyError):
        return False
    return all(_hash(folder / name) == digest for name, digest in hashes.items())


def run(ground: Ground, kills: int, seed: int) -> list[Killed]:
    """Kills so many runs; after each the same command runs to its end, and has to work."""
    source = random.Random(seed)
    done = []
    for number in range(kills):
        killed = ground.kill(number, source)
        killed.faults += ground.finish(ground.jobs[number % len(ground.jobs)])
        done.append(killed)
        for fault in killed.faults:
            print(f"kill {number} ({killed.job}, {killed.stage}): {fault}", flush=True)
    done.append(Killed("all", "after the last kill", 0, ground.tidy()))
    return done


def main() -> int:
    """Prints how often each stage was hit, and returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=100, help="(default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--layers", type=int, default=1, help="of the model (default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = run(Ground(Path(folder), args.layers), args.kills, args.seed)
    hits = Counter((item.job, item.stage) for item in done[:-1])
    left = Counter((item.job, item.stage) for item in done[:-1] if item.temporary)
    rows = [
        [job, stage, str(count), str(left[job, stage])]
        for (job, stage), count in sorted(hits.items())
    ]
    print_table(["command", "killed in", "times", "with temporary files left"], rows)
    faults = [fault for item in done for fault in item.faults]
    print(f"{args.kills} kills, seed {args.seed}: {len(faults)} faults", *faults, sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
