"""Loads an engine or a bundle, and runs it on NumPy arrays and on anything with DLPack."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from opfuse.errors import InputError
from opfuse.graph.filekind import refuse_no_engine
from opfuse.graph.protos import type_name
from opfuse.runtime import dlpack, loading
from opfuse.runtime.contexts import Shape
from opfuse.runtime.cuda import Device, open_device
from opfuse.runtime.group import Group
from opfuse.runtime.layout import Layout
from opfuse.runtime.program import Place, Program
from opfuse.runtime.schedule import Schedule, Value

AnyPath = str | os.PathLike[str]


class Engine:
    """A TensorRT engine or a segmented bundle, ready to run.

    Several threads may call :meth:`run`; ``contexts`` of them run at a time, each in memory of its
    own, and the others wait.
    """

    def __init__(self, program: Program, contexts: int, graphs: bool, max_graphs: int) -> None:
        self._program = program
        self._graphs, self._max_graphs = graphs, max_graphs
        self._idle: queue.LifoQueue[Place] = queue.LifoQueue()
        self._places: list[Place] = []
        self._contexts = contexts
        self._lock = threading.Lock()

    @staticmethod
    def load(
        path: AnyPath,
        *,
        plugins: AnyPath | None = None,
        contexts: int = 1,
        graphs: bool = True,
        max_graphs: int = 8,
        device: int | None = None,
    ) -> Engine:
        """Load a file that `opfuse build` wrote, or any TensorRT engine.

        Args:
            path: An engine or a ``.opfuse`` bundle.
            plugins: The plugin library of an engine that does not hold it.
            contexts: How many runs may be under way at a time.
            graphs: Replay a CUDA graph for each shape that comes again. Inputs and outputs that
                lie on the GPU are then copied there, within its memory; without graphs they are
                used where they lie.
            max_graphs: How many shapes keep a graph in each context; the one that was used least
                recently goes first.
            device: The number of the GPU; None takes the first, and for a rank's bundle the one
                of its number on this host.

        Raises:
            MissingComponent: This is not the GPU, the TensorRT, or the plugin library that the
                file was built for, or there is none.
            InputError: The file is damaged or cannot be read.
            EngineError: TensorRT refuses it.
            RankLost: It is a rank's bundle, and the other ranks do not come or run another one.
        """
        if contexts < 1 or max_graphs < 1:
            raise InputError("contexts and max_graphs are counts", "give 1 or more")
        file = Path(path)
        if not file.is_file():
            raise InputError(f"there is no engine {file}", "name a file that opfuse build wrote")
        refuse_no_engine(file)
        library = None if plugins is None else Path(plugins)

        def opened(usual: int = 0) -> Device:
            return open_device(usual if device is None else device)

        program = loading.load(file, library, opened)
        return Engine(program, contexts, graphs, max_graphs)

    @property
    def schedule(self) -> Schedule:
        """The steps of a run: one for a plain engine."""
        return self._program.schedule

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Name, ONNX element type, and dimensions of each input."""
        return self._program.schedule.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Name, ONNX element type, and dimensions of each output."""
        return self._program.schedule.outputs

    def usual_shapes(self) -> dict[str, Shape]:
        """For every input the shape that the engine is tuned for."""
        fixed = {
            value.name: tuple(int(dim) for dim in value.shape)
            for value in self.inputs
            if value.name not in self._program.usual
        }
        return {**fixed, **self._program.usual}

    @property
    def device(self) -> Device:
        """The GPU that it is loaded on."""
        return self._program.device

    @property
    def group(self) -> Group | None:
        """The other ranks, where this is one of several."""
        return self._program.group

    def memory(self) -> dict[str, int]:
        """Bytes on the device that opfuse manages, by what they are for.

        ``arena`` is intermediates, scratch memory, and staged inputs and outputs of all contexts
        so far. TensorRT's weights are its own.
        """
        arena = sum(place.arena_bytes for place in self._places)
        return {"arena": arena, "constants": self._program.constant_bytes}

    def close(self) -> None:
        """Free what is on the device; no run may be under way."""
        for place in self._places:
            place.close()
        self._places.clear()
        self._idle = queue.LifoQueue()
        self._program.close()

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes it; other ranks are told of an error."""
        try:
            if error is not None and self._program.group is not None:
                self._program.group.failed(error)
        finally:
            self.close()

    def run(self, inputs: Mapping[str, Any], *, graphs: bool | None = None) -> dict[str, Any]:
        """Run once and wait for the result.

        Args:
            inputs: An array for each input, in the type of the input: NumPy, or anything with
                DLPack, on the CPU or on this GPU, contiguous.
            graphs: Whether this run replays a graph; None does as the engine was loaded.

        Returns:
            The outputs by name: NumPy arrays, or where an input lies on the GPU arrays of that
            input's library (of `opfuse.runtime.dlpack.Array` where it has no ``from_dlpack``).

        Raises:
            InputError: Names, types, or shapes are not those of the engine.
            EngineError: TensorRT, a plugin, or CUDA refuses.
            RankLost: Another rank is gone.
        """
        self._program.device.enter()
        self._check_names(inputs)
        with self._program.watched(), self.place() as place:
            views = {v.name: self._view(v, inputs[v.name], place) for v in self.inputs}
            shapes = {name: item.shape for name, item in views.items()}
            on_device = all(item.on_device for item in views.values())
            by_graph = self._graphs if graphs is None else graphs
            staged = by_graph or not on_device
            layout = place.layout(shapes, staged=staged)
            library = _library(inputs, views)
            if staged:
                return self._run_staged(place, layout, views, library, by_graph)
            return self._run_in_place(place, layout, views, library)

    def written_by(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each step in words, and the tensors that it writes; views are left out."""
        schedule = self.schedule
        return [
            (title, names)
            for title, names in zip(schedule.titles(), schedule.written(), strict=True)
            if names
        ]

    def trace(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run step by step, and return what every step wrote, as NumPy arrays by name.

        Args:
            inputs: NumPy arrays, as for :meth:`run`.

        Raises:
            InputError, EngineError: As for :meth:`run`.
        """
        device, written = self.device, self.schedule.written()
        device.enter()
        self._check_names(inputs)
        found: dict[str, Any] = {}
        with self._program.watched(), self.place() as place:
            views = {v.name: self._view(v, inputs[v.name], place) for v in self.inputs}
            layout = place.layout({n: item.shape for n, item in views.items()}, staged=True)
            for name, item in views.items():
                device.copy(place.address(layout, name), item.address, item.bytes, place.stream)

            def keep(index: int) -> None:
                for name in written[index]:
                    value = self._program.values[name]
                    kind = helper.tensor_dtype_to_np_dtype(value.dtype)
                    array = np.empty(layout.shapes[name], kind)
                    source = place.address(layout, name)
                    device.copy(array.ctypes.data, source, array.nbytes, place.stream)
                    found[name] = array
                device.synchronize(place.stream)

            place.enqueue(layout, {}, keep)
        return found

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold one of the contexts, for whoever drives it himself; waits for a free one."""
        place = self._take()
        try:
            yield place
        finally:
            self._idle.put(place)

    def _take(self) -> Place:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            if len(self._places) < self._contexts:
                self._places.append(Place(self._program, self._max_graphs))
                return self._places[-1]
        return self._idle.get()

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        want = {value.name for value in self.inputs}
        if set(inputs) != want:
            odd = ", ".join(sorted(set(inputs) ^ want))
            raise InputError(
                f"the inputs given and those of the engine differ in {odd}",
                f"give {', '.join(sorted(want))}",
            )

    def _view(self, value: Value, array: Any, place: Place) -> dlpack.View:
        name = value.name
        if isinstance(array, (np.ndarray, np.generic)):
            found = _host_view(np.ascontiguousarray(array).reshape(array.shape), name)
        else:
            found = dlpack.view(array, name, place.stream)
        if found.element != value.dtype:
            given, want = type_name(found.element), type_name(value.dtype)
            raise InputError(f"input {name!r} is {given}, the engine takes {want}", "cast it")
        if not found.contiguous:
            raise InputError(f"input {name!r} is not contiguous", "pass a contiguous copy")
        fixed = [dim for dim in value.shape if isinstance(dim, int) and dim >= 0]
        fits = len(found.shape) == len(value.shape) and all(
            not isinstance(dim, int) or dim < 0 or dim == size
            for dim, size in zip(value.shape, found.shape, strict=True)
        )
        if not fits:
            want = "x".join(map(str, value.shape)) or "a scalar"
            raise InputError(
                f"input {name!r} has shape {list(found.shape)}, the engine takes {want}",
                f"{len(fixed)} of its {len(value.shape)} dimensions are fixed",
            )
        return found

    def _run_staged(
        self,
        place: Place,
        layout: Layout,
        views: Mapping[str, dlpack.View],
        library: Any,
        by_graph: bool,
    ) -> dict[str, Any]:
        device, stream = self._program.device, place.stream
        for name, item in views.items():
            device.copy(place.address(layout, name), item.address, item.bytes, stream)
        if by_graph:
            place.replay(layout)
        else:
            place.enqueue(layout, {})
        results: dict[str, Any] = {}
        for value in self.outputs:
            shape = layout.shapes[value.name]
            source = place.address(layout, value.name)
            size = dlpack.byte_count(value.dtype, shape)
            if library is None:
                host = np.empty(shape, helper.tensor_dtype_to_np_dtype(value.dtype))
                device.copy(host.ctypes.data, source, size, stream)
                results[value.name] = host
            else:
                results[value.name] = self._array(value, shape)
                device.copy(results[value.name].address, source, size, stream)
        device.synchronize(stream)
        return results if library is None else _converted(results, library)

    def _run_in_place(
        self, place: Place, layout: Layout, views: Mapping[str, dlpack.View], library: Any
    ) -> dict[str, Any]:
        results = {v.name: self._array(v, layout.shapes[v.name]) for v in self.outputs}
        bound = {name: item.address for name, item in views.items()}
        bound |= {name: array.address for name, array in results.items()}
        place.enqueue(layout, bound)
        self._program.device.synchronize(place.stream)
        return _converted(results, library)

    def _array(self, value: Value, shape: Shape) -> dlpack.Array:
        device = self._program.device
        address = device.allocate(dlpack.byte_count(value.dtype, shape))
        return dlpack.Array(address, value.dtype, shape, device.free, device.dlpack)


def _host_view(array: np.ndarray[Any, Any], name: str) -> dlpack.View:
    try:
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
    except (KeyError, ValueError):
        raise InputError(f"input {name!r} has type {array.dtype}", "cast it") from None
    return dlpack.View(array.ctypes.data, element, array.shape, False, 0, True, array)


def _library(inputs: Mapping[str, Any], views: Mapping[str, dlpack.View]) -> Any:
    """The module whose arrays come back: that of the first input on the GPU; None for NumPy."""
    for name, item in views.items():
        if item.on_device:
            module = sys.modules.get(type(inputs[name]).__module__.partition(".")[0])
            return module if hasattr(module, "from_dlpack") else dlpack
    return None


def _converted(results: dict[str, Any], library: Any) -> dict[str, Any]:
    if library is dlpack:
        return results
    return {name: array.to(library) for name, array in results.items()}
