"""Times several engines of one computation against each other; lives in a child process."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from opfuse import child
from opfuse.errors import OpfuseError
from opfuse.runtime.contexts import Shape
from opfuse.runtime.dlpack import byte_count
from opfuse.runtime.engine import Engine
from opfuse.runtime.layout import Layout
from opfuse.runtime.program import Place
from opfuse.runtime.timing import inputs_of

_RUNS = 8  # of one engine in one round
_WARM_UP = 5
_Held = tuple[Engine, Place, Layout, Mapping[str, Any]]  # the last are its inputs
_FLUSH = 64 << 20  # bytes read and written before each run: more than any cache keeps


def weigh(
    cases: Mapping[str, tuple[Mapping[str, Path], Mapping[str, Mapping[str, Shape]]]],
    rounds: int,
    seed: int,
) -> None:
    """Time the engines of each case against each other, and tell the times of each as an event.

    They are microseconds of one run by CUDA graph, for each point and each engine, one of each
    round. The engines take turns, so that a clock that changes changes all of them, and find the
    cache full of other data, as in a model whose other layers ran before. One that cannot be loaded
    or run at a point, or whose graph gives other bits than its steps do, has no times there.

    Other processes may load and compile meanwhile; when all have, one after the other times.

    Args:
        cases: By their names: engines or bundles with the same inputs, by the name of the variant,
            and the shapes of their inputs, by the name of the point.
        rounds: How often each takes its turn.
        seed: Of the inputs.
    """
    with ExitStack() as stack:
        ready = {}
        with _timing(fcntl.LOCK_SH):
            for name, (paths, points) in cases.items():
                child.emit({"at": name})
                places = _loaded(stack, paths)
                ready[name] = {
                    point: _warmed(places, shapes, seed) for point, shapes in points.items()
                }
        with _timing(fcntl.LOCK_EX):
            for name, held in ready.items():
                child.emit({"at": name})
                times = {point: _in_turns(found, rounds) for point, found in held.items()}
                child.emit({"case": name, "times": times})


@contextmanager
def _timing(how: int) -> Iterator[None]:
    """Share the machine with those that prepare (LOCK_SH), or have it for timing (LOCK_EX)."""
    with (Path(tempfile.gettempdir()) / f"opfuse-{os.getuid()}-timing").open("w") as file:
        fcntl.flock(file, how)
        yield


def _loaded(stack: ExitStack, paths: Mapping[str, Path]) -> dict[str, tuple[Engine, Place]]:
    """The engines that can be loaded, each with the place where it runs."""
    found = {}
    for name, path in paths.items():
        try:
            engine = stack.enter_context(Engine.load(path))
            found[name] = engine, stack.enter_context(engine.place())
        except OpfuseError as error:
            child.emit({"text": f"{name}: {error.what}"})
    return found


def _warmed(
    places: Mapping[str, tuple[Engine, Place]], shapes: Mapping[str, Shape], seed: int
) -> dict[str, _Held]:
    """The engines that run at a point, and whose graph gives the bits of the single steps."""
    ready: dict[str, _Held] = {}
    for name, (engine, place) in places.items():
        arrays = inputs_of(engine, shapes, seed)
        try:
            layout = place.layout({n: array.shape for n, array in arrays.items()}, staged=True)
            held = engine, place, layout, arrays
            if _run(held, by_graph=False) == _run(held, by_graph=True):
                ready[name] = held
        except OpfuseError as error:
            child.emit({"text": f"{name}: {error.what}"})
    return ready


def _run(held: _Held, *, by_graph: bool) -> list[bytes]:
    """The outputs of one run; the inputs are put in place before it."""
    engine, place, layout, arrays = held
    for name, array in arrays.items():
        address = place.address(layout, name)
        engine.device.copy(address, array.ctypes.data, array.nbytes, place.stream)
    if by_graph:
        place.replay(layout)
    else:
        place.enqueue(layout, {})
    return _outputs(engine, place, layout)


def _in_turns(ready: Mapping[str, _Held], rounds: int) -> dict[str, list[float]]:
    """Each has its inputs in place again: where it runs, another point may have run meanwhile."""
    for held in ready.values():
        for _ in range(_WARM_UP):
            _run(held, by_graph=True)
    times: dict[str, list[float]] = {name: [] for name in ready}
    flush = next((held[0].device.allocate(2 * _FLUSH) for held in ready.values()), 0)
    for _ in range(rounds):
        for name, held in ready.items():
            times[name].append(_turn(held, flush))
    for held in list(ready.values())[:1]:
        held[0].device.free(flush)
    return times


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


def _turn(held: _Held, flush: int) -> float:
    """The median of some runs, each behind a copy that also hides the time of its launch."""
    engine, place, layout, _ = held
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
