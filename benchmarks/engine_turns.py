"""Holds engines ready in a process of its own and times them whenever it is told to.

``python -m benchmarks.engine_turns FOLDER VARIANT...`` loads what benchmarks.engine_build wrote,
checks it, and then answers each line on its standard input with one line of JSON: ``turn`` with
the microseconds of some runs of each variant, ``profile`` with where the time of each goes. With
``--memory`` it loads nothing before ``memory`` comes, and answers with the device memory that the
one variant takes, as `opfuse bench` counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.engine_build import path_of
from opfuse.errors import OpfuseError
from opfuse.runtime.cuda import open_device
from opfuse.runtime.engine import Engine

RUNS, DISCARDED = 12, 2  # of each variant in a turn; the first ones find another's data in caches
_WARM_UP, _PROFILED = 5, 3  # runs under the profiler
# Kernels of the plugin library by what they are for; TensorRT's have names of their own.
_KINDS = (
    ("products", re.compile(r"opfuse::.*gemm")),
    ("rope", re.compile(r"opfuse::.*rope")),
    ("norms", re.compile(r"opfuse::.*norm_kernel")),
    (
        "attention",
        re.compile(r"opfuse::[\w:]*(hopper|heads|short|plain|decode|combine|prefill)\w*kernel"),
    ),
    ("other plugins", re.compile(r"opfuse::")),
)


class Runner(Protocol):
    """One variant that is ready to run."""

    def turn(self) -> list[float]:
        """Microseconds of `RUNS` runs."""

    def run(self) -> None:
        """Run once and wait."""


class EngineRunner:
    """An engine with its inputs in place.

    ``facts`` has its error, its memory for intermediates, and whether its CUDA graph gives the
    bits that its steps give one by one.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        arrays = dict(np.load(folder / "inputs.npz"))
        reference = np.load(folder / "reference.npz")
        self._engine = engine = Engine.load(path)
        given = {value.name: arrays[value.name] for value in engine.inputs}
        name = engine.outputs[0].name
        steps = np.asarray(engine.run(given, graphs=False)[name])
        replays = [np.asarray(engine.run(given)[name]) for _ in range(3)]
        with engine.place() as self._place:
            shapes = {key: array.shape for key, array in given.items()}
            self._layout = self._place.layout(shapes, staged=True)
        want, first = reference["want"], engine.inputs[0].name
        made = [engine.run({**given, first: value})[name] for value in reference["x"]]
        off = np.linalg.norm(np.asarray(made, np.float64) - want) / np.linalg.norm(want)
        self.facts = {
            "error": float(off),
            "arena_bytes": engine.memory()["arena"],
            "graph_is_exact": all(found.tobytes() == steps.tobytes() for found in replays),
        }

    def turn(self) -> list[float]:
        """Microseconds of single replays of the CUDA graph, by events around each."""
        device, place = self._engine.device, self._place
        start, end = device.open_event(), device.open_event()
        found = []
        for _ in range(RUNS):
            device.record(start, place.stream)
            place.replay(self._layout)
            device.record(end, place.stream)
            found.append(device.elapsed_us(start, end))
        device.close_event(start)
        device.close_event(end)
        return found

    def run(self) -> None:
        """Replay once and wait."""
        self._place.replay(self._layout)
        self._engine.device.synchronize(self._place.stream)


def profile(runner: Runner) -> dict[str, Any]:
    """Microseconds of one run by kind of kernel, of no kernel at all, and by kernel.

    A kernel that begins before its predecessor has ended, and waits for it, counts from there on.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    with profiling(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(_WARM_UP + _PROFILED):
            runner.run()
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in seen.events()
        if event.device_type == DeviceType.CUDA and event.time_range.elapsed_us() > 0
    )
    launches = len(spans) // (_WARM_UP + _PROFILED)
    spans = spans[_WARM_UP * launches :]
    kernels: dict[str, list[float]] = {}
    reached, idle = spans[0][0] if spans else 0.0, 0.0
    for number, (start, end, name) in enumerate(spans):
        if number % max(launches, 1):
            idle += max(0.0, start - reached)
        kernels.setdefault(name, []).append(max(0.0, end - max(start, reached)))
        reached = max(reached, end)
    kinds: dict[str, float] = {}
    for name, times in kernels.items():
        kinds[_kind(name)] = kinds.get(_kind(name), 0.0) + sum(times) / _PROFILED
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:20]
    return {
        "kinds": kinds,
        "idle": idle / _PROFILED,
        "launches": launches,
        "kernels": [
            [name[:100], len(times) / _PROFILED, sum(times) / _PROFILED] for name, times in longest
        ],
    }


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "TensorRT")


def serve(load: Callable[[], tuple[Mapping[str, Runner], Any]]) -> None:
    """Load, say so with some facts, and answer the lines that come; the first answer is the facts.

    What libraries print goes to the standard error, so that nothing mixes with the answers. Every
    turn begins with the next variant: at the power limit the first of a turn is up to 4 % faster
    than the same steps further behind (H100).
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    runners, facts = load()
    answer(facts)
    order = list(runners.items())
    for line in sys.stdin:
        if line.strip() == "turn":
            answer({name: runner.turn()[DISCARDED:] for name, runner in order})
            order = [*order[1:], *order[:1]]
        else:
            answer({name: profile(runner) for name, runner in runners.items()})
    os._exit(0)  # without the destructors of native libraries, which may crash


def loaded(folder: Path, variants: Sequence[str]) -> tuple[dict[str, Runner], dict[str, Any]]:
    """The variants that can be loaded and run, and what is known of each."""
    runners: dict[str, Runner] = {}
    facts: dict[str, Any] = {}
    for variant in variants:
        path = path_of(folder, variant)
        try:
            runner = EngineRunner(path, folder)
        except (OpfuseError, OSError) as error:
            facts[variant] = {"failed": str(error)}
            continue
        built = path.with_suffix(".json")
        facts[variant] = runner.facts | (json.loads(built.read_text()) if built.exists() else {})
        runners[variant] = runner
    return runners, facts


def memory(path: Path, folder: Path) -> int:
    """Bytes of the device that are in use after a run by graph, and were not before loading."""
    device = open_device()
    arrays = dict(np.load(folder / "inputs.npz"))
    before = device.used_bytes()
    with Engine.load(path) as engine:
        given = {value.name: arrays[value.name] for value in engine.inputs}
        for _ in range(2):
            engine.run(given)
        return device.used_bytes() - before


def _serve_memory(folder: Path, variant: str) -> None:
    path = path_of(folder, variant)
    path.read_bytes()  # into the page cache
    open_device()
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    print(json.dumps(memory(path, folder)), flush=True)
    os._exit(0)


def main() -> None:
    """Serve what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--memory", action="store_true", help="of the one variant, when told to")
    args = parser.parse_args()
    if args.memory:
        _serve_memory(args.folder, *args.variants)
    else:
        serve(lambda: loaded(args.folder, args.variants))


if __name__ == "__main__":
    main()
