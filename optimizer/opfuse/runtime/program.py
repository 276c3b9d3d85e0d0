"""A schedule with its engines, plugins, and constants loaded, and the places where it runs."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opfuse.errors import EngineError, OpfuseError
from opfuse.graph.protos import type_name
from opfuse.runtime import abi, memory
from opfuse.runtime.cold import Cold
from opfuse.runtime.contexts import Contexts, Shape, Shapes
from opfuse.runtime.copies import Box
from opfuse.runtime.cuda import Device
from opfuse.runtime.dlpack import byte_count
from opfuse.runtime.group import Group
from opfuse.runtime.layout import Layout
from opfuse.runtime.schedule import (
    CopyStep,
    EngineStep,
    PluginStep,
    Schedule,
    Value,
    ViewStep,
)
from opfuse.runtime.tensorrt import Loader, ports

MakePlugin = Callable[[str, Mapping[str, abi.AttributeValue]], Any]
"""Makes an op of the plugin library; a test gives another that needs no GPU."""
MakeCopies = Callable[[Sequence[abi.Copied], int], None]
"""Puts copies on a stream, as `abi.copy` does with the plugin library."""


class Program:
    """What all places share: the engines, the plugin library, the constants on the device.

    Args:
        schedule: The steps.
        loader: The TensorRT that loads the engines.
        engines: The loaded engines, by the names that the schedule has for them.
        constants: The bytes of each constant, by name.
        make_plugin, copy: The plugin library's; None where no step needs it.
        device: The GPU.
        usual: The shapes that the dynamic inputs are tuned for, as far as they are known.

    Raises:
        EngineError: An engine does not fit the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        loader: Loader,
        engines: Mapping[str, Any],
        constants: Mapping[str, bytes],
        make_plugin: MakePlugin | None,
        copy: MakeCopies | None,
        device: Device,
        usual: Shapes,
    ) -> None:
        self.usual = usual
        self.group: Group | None = None
        self.cold = Cold(device.enter)
        self.schedule, self.loader, self.device = schedule, loader, device
        self.make_plugin, self.copy = make_plugin, copy
        self.values = {
            value.name: value
            for value in (
                *schedule.inputs,
                *schedule.outputs,
                *schedule.between,
                *schedule.constants,
            )
        }
        self.engines = dict(engines)
        for step in schedule.steps:
            if isinstance(step, EngineStep):
                self._check_ports(step)
        self.titles = schedule.titles()
        self.constant_bytes = sum(memory.rounded(len(data)) for data in constants.values())
        self._block = device.allocate(self.constant_bytes) if constants else 0
        self.constants = self._uploaded(constants)

    def close(self) -> None:
        """Free the constants; no place may be used afterwards."""
        self.cold.close()
        self.device.free(self._block)
        self._block, self.constants = 0, {}
        self.engines = {}
        if self.group is not None:
            self.group.close()
            self.group = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refuse what is made in this block where another rank is lost meanwhile.

        Raises:
            RankLost: One is.
        """
        try:
            yield
        except OpfuseError:
            if self.group is not None:
                self.group.check()
            raise
        if self.group is not None:
            self.group.check()

    def _uploaded(self, constants: Mapping[str, bytes]) -> dict[str, int]:
        """Where each constant lies: one after the other in one block.

        CUDA gives out large blocks in steps of 2 MiB, which for each of BERT-base's 48 weights by
        itself took a tenth more memory than all of it.
        """
        stream = self.device.open_stream()
        found, at = {}, self._block
        for name, data in constants.items():
            source = (ctypes.c_char * len(data)).from_buffer_copy(data)
            self.device.copy(at, ctypes.addressof(source), len(data), stream)
            self.device.synchronize(stream)
            found[name] = at
            at += memory.rounded(len(data))
        self.device.close_stream(stream)
        return found

    def _check_ports(self, step: EngineStep) -> None:
        found = ports(self.engines[step.engine])
        inputs, outputs = (step.input_ports, step.inputs), (step.output_ports, step.outputs)
        for is_input, pairs in ((True, inputs), (False, outputs)):
            there = {port.name: port.element for port in found if port.is_input is is_input}
            want = {port: self.values[name].dtype for port, name in zip(*pairs, strict=True)}
            if there != want:
                raise EngineError(
                    f"{step.engine} has {_listed(there)}, the schedule says {_listed(want)}",
                    "build the bundle again",
                )


def _listed(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {type_name(element)}" for name, element in sorted(types.items()))


class Place:
    """Where a program runs, one run at a time: contexts, a stream, memory, graphs.

    The memory grows with the shapes that come and never shrinks; graphs hold addresses of it, so
    they go when it grows. It is made, and sees each shape first, on the program's cold thread.
    """

    def __init__(self, program: Program, max_graphs: int, max_layouts: int = 64) -> None:
        self.program = program
        self.stream = program.device.open_stream()
        self.arena_bytes = 0
        self._arena = 0
        self._max_graphs, self._max_layouts = max_graphs, max_layouts
        self._graphs: OrderedDict[tuple[Any, ...], int] = OrderedDict()
        self._layouts: OrderedDict[tuple[Any, ...], Layout] = OrderedDict()
        self._warm: set[tuple[Any, ...]] = set()
        self._plugins: dict[int, Any] = {}
        program.cold.do(self._open)

    def _open(self) -> None:
        program = self.program
        self._contexts = Contexts(program.loader, program.engines)
        for index, step in enumerate(program.schedule.steps):
            if isinstance(step, PluginStep):
                assert program.make_plugin is not None
                self._plugins[index] = program.make_plugin(step.op, step.attributes)

    def close(self) -> None:
        """Free what is on the device."""
        device = self.program.device
        device.enter()
        self._drop_graphs()
        self._plugins.clear()
        self._contexts.close()
        device.free(self._arena)
        device.close_stream(self.stream)

    def layout(self, inputs: Shapes, *, staged: bool) -> Layout:
        """The layout for these input shapes; the memory is there afterwards.

        Raises:
            InputError: The engine does not take the shapes.
            EngineError: TensorRT cannot tell the shape of an output before it runs.
        """
        key = (tuple(sorted(inputs.items())), staged)
        found = self._layouts.get(key)
        if found is None:
            shapes, scratch = self.program.cold.do(lambda: self._infer(inputs))
            placement = memory.place(self._lives(shapes, scratch, staged))
            boxes = self.program.schedule.boxes(shapes)
            found = Layout(key, shapes, placement.offsets, scratch, boxes, placement.bytes)
            self._layouts[key] = found
            if len(self._layouts) > self._max_layouts:
                self._warm.discard(self._layouts.popitem(last=False)[0])
        self._layouts.move_to_end(key)
        self._grow(found.bytes)
        return found

    def address(self, layout: Layout, name: str) -> int:
        """Where a tensor lies that has a place in the arena."""
        return self._arena + layout.offsets[name]

    def enqueue(
        self,
        layout: Layout,
        bound: Mapping[str, int],
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Put all steps on the stream.

        Args:
            layout: Inputs and outputs that are not bound lie in the arena of a staged one.
            bound: Addresses of inputs and outputs.
            after: Called with the number of each step when it is on the stream.

        Raises:
            EngineError: TensorRT, a plugin, or CUDA refuses.
        """
        if layout.key in self._warm and self._contexts.have(layout.shapes):
            self._enqueue(self._contexts, layout, bound, after)
        else:
            self.program.cold.do(lambda: self._enqueue(self._contexts, layout, bound, after))
            self._warm.add(layout.key)

    def _enqueue(
        self,
        contexts: Contexts,
        layout: Layout,
        bound: Mapping[str, int],
        after: Callable[[int], None],
    ) -> None:
        contexts.give(self.program.schedule.engines(), layout.shapes)
        where: dict[str | int, int] = {n: self._arena + at for n, at in layout.offsets.items()}
        where.update(self.program.constants)
        where.update(bound)
        for index, step in enumerate(self.program.schedule.steps):
            scratch = where.get(index, 0)
            if isinstance(step, EngineStep):
                memory = scratch, layout.scratch.get(index, 0)
                contexts.run(step, where, memory, self.stream, self.program.titles[index])
            elif isinstance(step, ViewStep):
                where[step.outputs[0]] = where[step.inputs[0]]
            elif isinstance(step, CopyStep):
                self._copy(layout.boxes[index], where)
            else:
                self._plugins[index].enqueue(
                    self._tensors(step.inputs, layout.shapes, where),
                    self._tensors(step.outputs, layout.shapes, where),
                    self.stream,
                    scratch,
                )
            after(index)

    def _copy(self, boxes: Sequence[tuple[Box, bool]], where: Mapping[str | int, int]) -> None:
        assert self.program.copy is not None
        copied = [abi.Copied(b, where[b.source], where[b.target], early) for b, early in boxes]
        self.program.copy(copied, self.stream)

    def layer_times(self, layout: Layout) -> dict[int, list[tuple[str, float]]]:
        """The layers of every engine step and their microseconds, by the number of the step.

        TensorRT times layers one after the other, so together they take longer than a run does.
        """
        steps = self.program.schedule.steps
        found: dict[int, list[tuple[str, float]]] = {}

        def timed() -> None:
            with self._contexts.profiled() as (contexts, told):

                def after(index: int) -> None:
                    self.program.device.synchronize(self.stream)
                    if isinstance(steps[index], EngineStep):
                        found[index] = list(told)
                    told.clear()

                self._enqueue(contexts, layout, {}, after)

        self.program.cold.do(timed)
        return found

    def replay(self, layout: Layout) -> None:
        """Run a staged layout by its graph, which the first call makes.

        The steps run once before they are captured: TensorRT compiles and allocates at the first
        use of a shape, which a capture does not allow.
        """
        device = self.program.device
        graph = self._graphs.get(layout.key)
        if graph is None:
            graph = self.program.cold.do(lambda: self._capture(layout))
            self._graphs[layout.key] = graph
            if len(self._graphs) > self._max_graphs:
                device.destroy(self._graphs.popitem(last=False)[1])
        self._graphs.move_to_end(layout.key)
        device.launch(graph, self.stream)

    def _capture(self, layout: Layout) -> int:
        def work() -> None:
            self._enqueue(self._contexts, layout, {}, lambda step: None)

        work()
        self.program.device.synchronize(self.stream)
        return self.program.device.capture(self.stream, work)

    def _tensors(
        self, names: tuple[str, ...], shapes: Shapes, where: Mapping[str | int, int]
    ) -> list[abi.Tensor]:
        values = self.program.values
        return [abi.Tensor(values[name].dtype, shapes[name], where[name]) for name in names]

    def _infer(self, inputs: Shapes) -> tuple[dict[str, Shape], dict[int, int]]:
        """The shape of every tensor and the scratch memory of every step."""
        shapes: dict[str, Shape] = dict(inputs)
        shapes |= {v.name: _fixed(v) for v in self.program.schedule.constants}
        scratch: dict[int, int] = {}
        self._contexts.begin()
        for index, step in enumerate(self.program.schedule.steps):
            if isinstance(step, EngineStep):
                made, size = self._contexts.infer(step, shapes)
                shapes |= made
            elif isinstance(step, ViewStep):
                shapes[step.outputs[0]] = step.shape(shapes[step.inputs[0]])
                continue
            elif isinstance(step, CopyStep):
                shapes |= step.shapes(shapes)
                continue
            else:
                size = self._infer_plugin(self._plugins[index], step, shapes)
            if size:
                scratch[index] = size
        self._contexts.end(shapes)
        return shapes, scratch

    def _infer_plugin(self, plugin: Any, step: PluginStep, shapes: dict[str, Shape]) -> int:
        read = [abi.Tensor(self.program.values[n].dtype, shapes[n]) for n in step.inputs]
        for name, made in zip(step.outputs, plugin.infer(read, len(step.outputs)), strict=True):
            if made.dtype != self.program.values[name].dtype:
                raise EngineError(f"{step.node} gives {name!r} another type than the bundle says")
            shapes[name] = made.shape
        return int(plugin.workspace_size(read))

    def _lives(self, shapes: Shapes, scratch: Mapping[int, int], staged: bool) -> list[memory.Life]:
        schedule = self.program.schedule
        lifetimes = schedule.lifetimes()
        if staged:
            end = len(schedule.steps)
            lifetimes |= {value.name: (-1, end) for value in schedule.inputs}
            lifetimes |= {value.name: (-1, end) for value in schedule.outputs}
        lives = [
            memory.Life(name, byte_count(self.program.values[name].dtype, shapes[name]), *life)
            for name, life in lifetimes.items()
        ]
        return lives + [memory.Life(at, size, at, at) for at, size in scratch.items()]

    def _grow(self, size: int) -> None:
        if size <= self.arena_bytes and self._arena:
            return
        device = self.program.device
        device.synchronize(self.stream)
        self._drop_graphs()
        device.free(self._arena)
        self._arena, self.arena_bytes = 0, 0
        self._arena = device.allocate(size)
        self.arena_bytes = size

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            self.program.device.destroy(graph)
        self._graphs.clear()


def _fixed(value: Value) -> Shape:
    return tuple(int(dim) for dim in value.shape)
