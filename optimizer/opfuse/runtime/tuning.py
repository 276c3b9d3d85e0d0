"""Times several engines of one computation against each other; lives in a child process."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from opfuse import child
from opfuse.errors import OpfuseError
from opfuse.runtime.dlpack import byte_count
from opfuse.runtime.engine import Engine
from opfuse.runtime.program import Layout, Place, Shape
from opfuse.runtime.timing import inputs_of

_RUNS = 8  # of one engine in one round
_WARM_UP = 5
_FLUSH = 64 << 20  # bytes read and written before each run: more than any cache keeps


def weigh(
    cases: Mapping[str, tuple[Mapping[str, Path], Mapping[str, Mapping[str, Shape]]]],
    rounds: int,
    seed: int,
) -> None:
    """Compare the engines of each case, and tell its times as an event as soon as they are there.

    Args:
        cases: Paths and points of `compare`, by the name of the case.
        rounds: As for `compare`.
        seed: As for `compare`.
    """
    with exclusive():
        for done, (name, (paths, points)) in enumerate(cases.items()):
            times = compare(paths, points, rounds, seed)
            child.emit({"case": name, "times": times, "done": done + 1, "total": len(cases)})


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait for other processes of opfuse that time something on this machine."""
    with (Path(tempfile.gettempdir()) / f"opfuse-{os.getuid()}-timing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compare(
    paths: Mapping[str, Path], points: Mapping[str, Mapping[str, Shape]], rounds: int, seed: int
) -> dict[str, dict[str, list[float]]]:
    """Microseconds of one run by CUDA graph, for each point and each engine, one of each round.

    The engines take turns, so that a clock that changes changes all of them, and find the cache
    full of other data, as in a model whose other layers ran before. One that cannot be loaded or
    run at a point, or whose graph gives other bits than its steps do, has no times there.

    Args:
        paths: Engines or bundles with the same inputs, by name.
        points: Shapes of the inputs, by the name of the point.
        rounds: How often each takes its turn.
        seed: Of the inputs.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        engines = {}
        for name, path in paths.items():
            try:
                engines[name] = stack.enter_context(Engine.load(path))
            except OpfuseError as error:
                child.emit({"text": f"{name}: {error.what}"})
        for point, shapes in points.items():
            found[point] = _at_point(engines, shapes, rounds, seed)
    return found


def _at_point(
    engines: Mapping[str, Engine], shapes: Mapping[str, Shape], rounds: int, seed: int
) -> dict[str, list[float]]:
    ready: dict[str, tuple[Engine, Place, Layout]] = {}
    with ExitStack() as stack:
        for name, engine in engines.items():
            place = stack.enter_context(engine.place())
            try:
                layout = _warm(engine, place, shapes, seed)
            except OpfuseError as error:
                child.emit({"text": f"{name}: {error.what}"})
                continue
            if layout is not None:
                ready[name] = engine, place, layout
        times: dict[str, list[float]] = {name: [] for name in ready}
        flush = next((engine.device.allocate(2 * _FLUSH) for engine, *_ in ready.values()), 0)
        for _ in range(rounds):
            for name, held in ready.items():
                times[name].append(_turn(*held, flush))
        for engine, *_ in list(ready.values())[:1]:
            engine.device.free(flush)
        return times


def _warm(engine: Engine, place: Place, shapes: Mapping[str, Shape], seed: int) -> Layout | None:
    """The layout of a point with inputs in it; None where the graph gives other bits than steps."""
    device, stream = engine.device, place.stream
    arrays = inputs_of(engine, shapes, seed)
    layout = place.layout({name: array.shape for name, array in arrays.items()}, staged=True)
    seen = []
    for by_graph in (False, True):
        for name, array in arrays.items():
            device.copy(place.address(layout, name), array.ctypes.data, array.nbytes, stream)
        if by_graph:
            place.replay(layout)
        else:
            place.enqueue(layout, {})
        seen.append(_outputs(engine, place, layout))
    for _ in range(_WARM_UP):
        place.replay(layout)
    device.synchronize(stream)
    return layout if seen[0] == seen[1] else None


def _outputs(engine: Engine, place: Place, layout: Layout) -> list[bytes]:
    found = []
    for value in engine.outputs:
        size = byte_count(value.dtype, layout.shapes[value.name])
        data = np.empty(size, np.uint8)
        address = place.address(layout, value.name)
        engine.device.copy(data.ctypes.data, address, size, place.stream)
        found.append(data)
    engine.device.synchronize(place.stream)
    return [data.tobytes() for data in found]


def _turn(engine: Engine, place: Place, layout: Layout, flush: int) -> float:
    """The median of some runs, each behind a copy that also hides the time of its launch."""
    device, stream = engine.device, place.stream
    start, end = device.open_event(), device.open_event()
    found = []
    for _ in range(_RUNS):
        device.copy(flush + _FLUSH, flush, _FLUSH, stream)
        device.record(start, stream)
        place.replay(layout)
        device.record(end, stream)
        found.append(device.elapsed_us(start, end))
    device.close_event(start)
    device.close_event(end)
    return median(found)
