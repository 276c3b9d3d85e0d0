"""How long an engine takes and what memory it takes; lives in a child process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from opfuse import child
from opfuse.engine.profile import completed
from opfuse.errors import EngineError
from opfuse.graph.collectives import SPEAKING
from opfuse.graph.dims import Dim, parse, symbol
from opfuse.graph.protos import type_name
from opfuse.runtime.contexts import Shape
from opfuse.runtime.cuda import Device, open_device
from opfuse.runtime.engine import Engine
from opfuse.runtime.group import Group
from opfuse.runtime.layout import Layout
from opfuse.runtime.program import Place
from opfuse.runtime.schedule import CopyStep, EngineStep, PluginStep


@dataclass(frozen=True)
class Latency:
    """Microseconds of one run on the GPU's clock, and how many runs a second fit end to end."""

    median_us: float
    p90_us: float
    p99_us: float
    runs_per_s: float


@dataclass(frozen=True)
class StepTime:
    """The median of one step, run after the others; ``plugin`` marks our kernels, copies too.

    ``layers`` has the name and the microseconds of each layer of an engine, as TensorRT tells them.
    """

    what: str
    plugin: bool
    median_us: float
    layers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class RankTime:
    """One rank of several, in microseconds: a run by its graph, and the medians of its steps.

    ``collectives_us`` holds what it waits for the others too.
    """

    rank: int
    graph_us: float
    segments_us: float
    collectives_us: float
    plugins_us: float
    transport: str


@dataclass(frozen=True)
class Measurement:
    """One engine in one shape.

    Attributes:
        path: The engine.
        gpu: Its GPU.
        shapes: The shape of every input.
        types: The ONNX element type of every input.
        eager: Each step put on the stream by itself.
        graph: One CUDA graph for all steps.
        load_s: Seconds to load it.
        first_result_s: Seconds from the start of loading to the first output on the host.
        peak_bytes: Device memory in use afterwards that was not in use before loading, by whoever.
        arena_bytes: Intermediates, scratch, inputs, and outputs of one context, of these.
        segments, plugins: What one run consists of.
        steps: Where the time of an eager run goes.
        largest: The largest absolute value of any output, as a sign of life.
        ranks: Of a rank's bundle all ranks of this run.
        sha256: Of the engine's file.
        others_bytes: By how much the memory in use changed while the engine only ran: others use
            the GPU, and ``peak_bytes`` is theirs too.
    """

    path: str
    gpu: str
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    eager: Latency
    graph: Latency
    load_s: float
    first_result_s: float
    peak_bytes: int
    arena_bytes: int
    segments: int
    plugins: int
    steps: tuple[StepTime, ...]
    largest: float
    ranks: tuple[RankTime, ...] = ()
    sha256: str = ""
    others_bytes: int = 0


def measure(
    path: Path,
    shapes: Mapping[str, Shape],
    iterations: int,
    warm_up: int,
    seed: int,
    plugins: Path | None = None,
    device: int = 0,
) -> Measurement:
    """Load an engine and time it on random inputs.

    Args:
        path: An engine or a bundle.
        shapes: Shapes of inputs; others have the ones that the engine is tuned for.
        iterations: How many runs are timed, each by itself, and then all in a row.
        warm_up: How many runs come before.
        seed: Of the inputs.
        plugins: The plugin library, where the engine does not hold it.
        device: The number of the GPU.

    Raises:
        OpfuseError: The engine cannot be loaded or run, or its CUDA graph computes something else
            than the steps one by one.
    """
    began, before = time.perf_counter(), open_device(device).used_bytes()
    with Engine.load(path, plugins=plugins, graphs=False, device=device) as engine:
        load_s = time.perf_counter() - began
        arrays = inputs_of(engine, shapes, seed)
        first = engine.run(arrays)
        first_result_s = time.perf_counter() - began
        with engine.place() as place:
            layout = place.layout({n: a.shape for n, a in arrays.items()}, staged=True)
            clock = Clock(engine.device, place.stream, iterations, warm_up, path.name)
            eager, others_bytes = _watched(clock, lambda: place.enqueue(layout, {}))
            graph = clock.time("CUDA graph", lambda: place.replay(layout))
            steps = step_times(engine, place, layout, warm_up)
            _check_replay(engine, place, layout, first)
        return Measurement(
            path=str(path),
            gpu=engine.device.gpu.name,
            shapes={name: tuple(array.shape) for name, array in arrays.items()},
            types={value.name: value.dtype for value in engine.inputs},
            eager=eager,
            graph=graph,
            load_s=load_s,
            first_result_s=first_result_s,
            peak_bytes=engine.device.used_bytes() - before,
            arena_bytes=engine.memory()["arena"],
            segments=sum(not step.plugin for step in steps),
            plugins=sum(step.plugin for step in steps),
            steps=steps,
            largest=largest(first.values()),
            ranks=ranks_of(engine.group, graph, steps),
            others_bytes=others_bytes,
        )


class Clock:
    """Times what is put on a stream."""

    def __init__(
        self, device: Device, stream: int, iterations: int, warm_up: int, name: str
    ) -> None:
        self.device, self.stream, self._name = device, stream, name
        self._iterations, self._warm_up = iterations, warm_up

    def time(self, what: str, work: Callable[[], None]) -> Latency:
        """Single runs, each waited for; then all of them without waiting."""
        child.emit({"text": f"{self._name}: {what}"})
        device, stream = self.device, self.stream
        for _ in range(self._warm_up):
            work()
        device.synchronize(stream)
        start, end = device.open_event(), device.open_event()
        singles = []
        for _ in range(self._iterations):
            device.record(start, stream)
            work()
            device.record(end, stream)
            singles.append(device.elapsed_us(start, end))
        device.record(start, stream)
        for _ in range(self._iterations):
            work()
        device.record(end, stream)
        row = device.elapsed_us(start, end)
        device.close_event(start)
        device.close_event(end)
        return summary(singles, self._iterations / row * 1e6)


def _watched(clock: Clock, work: Callable[[], None]) -> tuple[Latency, int]:
    """Eager runs, and by how much the memory in use changes in what takes none."""
    work()  # what only the first run may do
    used = clock.device.used_bytes()
    found = clock.time("eager", work)
    return found, abs(clock.device.used_bytes() - used)


def step_times(engine: Engine, place: Place, layout: Layout, repeats: int) -> tuple[StepTime, ...]:
    """The time between events around each step of one graph, where no launch comes late.

    An event lets no kernel start before the one ahead of it ends, as some do in a run.
    """
    device, steps = engine.device, engine.schedule.steps
    events = [device.open_event() for _ in range(len(steps) + 1)]
    samples: list[list[float]] = [[] for _ in steps]

    def work() -> None:
        device.mark(events[0], place.stream)
        place.enqueue(layout, {}, lambda step: device.mark(events[step + 1], place.stream))

    place.enqueue(layout, {})  # what only the first run may do
    device.synchronize(place.stream)
    graph = device.capture(place.stream, work)
    for _ in range(repeats):
        device.launch(graph, place.stream)
        device.synchronize(place.stream)
        for index, found in enumerate(samples):
            found.append(device.elapsed_us(events[index], events[index + 1]))
    device.destroy(graph)
    for event in events:
        device.close_event(event)
    medians = [float(np.median(found)) for found in samples]
    layers = place.layer_times(layout)
    found_steps = []
    titles = engine.schedule.titles()
    for index, (step, median) in enumerate(zip(steps, medians, strict=True)):
        if isinstance(step, EngineStep):
            found_steps.append(StepTime(titles[index], False, median, tuple(layers[index])))
        elif isinstance(step, PluginStep | CopyStep):
            found_steps.append(StepTime(titles[index], True, median))
    return tuple(found_steps)


def ranks_of(
    group: Group | None, graph: Latency, steps: Sequence[StepTime]
) -> tuple[RankTime, ...]:
    """The times of every rank, on all of them."""
    if group is None:
        return ()
    sums = {"segments": 0.0, "collectives": 0.0, "plugins": 0.0}
    for step in steps:
        speaks = step.plugin and step.what.endswith(_SPEAKING)
        kind = "collectives" if speaks else "plugins" if step.plugin else "segments"
        sums[kind] += step.median_us
    mine = RankTime(
        group.world.rank,
        graph.median_us,
        sums["segments"],
        sums["collectives"],
        sums["plugins"],
        group.transport,
    )
    everyone = group.share(json.dumps(asdict(mine)).encode())
    return tuple(RankTime(**json.loads(data)) for data in everyone)


_SPEAKING = tuple(f"({op})" for op in SPEAKING)


def summary(singles: Sequence[float], runs_per_s: float) -> Latency:
    """Percentiles of single runs, in microseconds."""
    median, p90, p99 = (float(np.percentile(singles, at)) for at in (50, 90, 99))
    return Latency(median, p90, p99, runs_per_s)


def inputs_of(engine: Engine, shapes: Mapping[str, Shape], seed: int) -> dict[str, Any]:
    """Floats are standard normal; integers are 0 and 1, which every table and mask takes.

    Raises:
        InputError: A shape is for no input, or has another rank.
    """
    types = {value.name: value.dtype for value in engine.inputs}
    dims = {
        value.name: tuple(_dim(value.name, axis, dim) for axis, dim in enumerate(value.shape))
        for value in engine.inputs
    }
    return draw(completed(dims, engine.usual_shapes(), shapes), types, seed)


def _dim(name: str, axis: int, dim: int | str) -> Dim:
    """A dimension of an input; one without a name, as TensorRT's own engines have, is its own."""
    if isinstance(dim, int):
        return dim
    return symbol(f"axis {axis} of {name}") if dim == "?" else parse(dim)


def draw(shapes: Mapping[str, Shape], types: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Arrays in these shapes and ONNX element types, the same for the same seed."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        floating = "FLOAT" in type_name(types[name])
        drawn = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
        kind = helper.tensor_dtype_to_np_dtype(types[name])
        arrays[name] = np.asarray(drawn).astype(kind)
    return arrays


def _check_replay(
    engine: Engine, place: Place, layout: Layout, expected: Mapping[str, Any]
) -> None:
    """Compare what the graph left in the outputs with an ordinary run on the same inputs."""
    for value in engine.outputs:
        found = np.empty_like(expected[value.name])
        source = place.address(layout, value.name)
        engine.device.copy(found.ctypes.data, source, found.nbytes, place.stream)
        engine.device.synchronize(place.stream)
        if found.tobytes() != expected[value.name].tobytes():
            raise EngineError(f"the CUDA graph gives {value.name!r} other values than the run did")


def largest(outputs: Iterable[Any]) -> float:
    """The largest absolute value in any of the arrays."""
    sizes = [np.abs(array.astype(np.float64)).max(initial=0.0) for array in outputs]
    return float(max(sizes, default=0.0))
