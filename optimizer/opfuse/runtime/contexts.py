"""The execution contexts of one place: one for each engine, whichever steps run it.

An engine that several steps run has the same shapes at all of them, for they have the same
dimensions in the model; what differs is where its tensors lie. One stream puts the runs in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opfuse.errors import EngineError, InputError
from opfuse.runtime.schedule import EngineStep
from opfuse.runtime.tensorrt import Loader

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
_TOGETHER = "give dimensions that have one name in the model one size"


class Contexts:
    """Execution contexts with the shapes that they were given last.

    Args:
        loader: The TensorRT of the engines.
        engines: The loaded engines by their names in the schedule.
    """

    def __init__(self, loader: Loader, engines: Mapping[str, Any]) -> None:
        self._loader, self._engines = loader, engines
        self._contexts = {name: loader.context(engine) for name, engine in engines.items()}
        self._shapes: dict[str, tuple[Shape, ...]] = {}
        self._given: Shapes | None = None

    def close(self) -> None:
        """Drop them; none may be running."""
        self._contexts.clear()
        self._engines = {}

    def begin(self) -> None:
        """Shapes of other inputs follow."""
        self._shapes.clear()
        self._given = None

    def end(self, shapes: Shapes) -> None:
        """Every engine has its shapes; they are these."""
        self._given = shapes

    def have(self, shapes: Shapes) -> bool:
        """Whether these are the shapes, the same object, that all engines were given last."""
        return self._given is shapes

    def give(self, steps: Iterable[EngineStep], shapes: Shapes) -> None:
        """Give the engines of all steps their shapes, where they have others.

        Raises:
            InputError: As `set` does.
        """
        if self.have(shapes):
            return
        self.begin()
        for step in steps:
            self.set(step, shapes)
        self.end(shapes)

    def set(self, step: EngineStep, shapes: Shapes) -> int:
        """Give the engine of a step its shapes; the bytes of scratch memory that it asks for.

        Raises:
            InputError: It does not take them, or was given others for a step before.
        """
        context = self._contexts[step.engine]
        own = tuple(shapes[name] for name in step.inputs)
        if self._shapes.setdefault(step.engine, own) != own:
            raise InputError(
                f"{step.engine} would run in the shapes {self._shapes[step.engine]} and {own}",
                _TOGETHER,
            )
        for name, port, shape in zip(step.inputs, step.input_ports, own, strict=True):
            if not context.set_input_shape(port, shape):
                error = self._loader.complaint(f"{name!r} in shape {list(shape)}")
                raise InputError(error.what, "keep to the shapes that the engine was built for")
        return int(context.update_device_memory_size_for_shapes())

    def infer(self, step: EngineStep, shapes: Shapes) -> tuple[dict[str, Shape], int]:
        """As `set`, with the shapes of what the step writes.

        Raises:
            InputError: As `set` does, and where the shapes do not go together.
            EngineError: A shape is not known before the engine has run.
        """
        size = self.set(step, shapes)
        found = {}
        for name, port in zip(step.outputs, step.output_ports, strict=True):
            try:
                found[name] = tuple(self._contexts[step.engine].get_tensor_shape(port))
            except ValueError:  # of a negative rank, which stands for sizes that contradict
                given = ", ".join(f"{n} {list(shapes[n])}" for n in step.inputs)
                error = self._loader.complaint(f"the shapes {given} together")
                raise InputError(error.what, _TOGETHER) from None
            if min(found[name], default=0) < 0:
                raise EngineError(f"the shape of {name!r} is not known before it is run")
        return found, size

    def run(
        self,
        step: EngineStep,
        where: Mapping[str | int, int],
        memory: tuple[int, int],
        stream: int,
        title: str,
    ) -> None:
        """Put one run on the stream.

        Args:
            step: Its engine has its shapes.
            where: The address of every tensor.
            memory: The address and the bytes of the scratch memory.
            stream: The stream.
            title: What messages call the step.

        Raises:
            EngineError: TensorRT refuses.
        """
        context = self._contexts[step.engine]
        for names, ports in (step.inputs, step.input_ports), (step.outputs, step.output_ports):
            for name, port in zip(names, ports, strict=True):
                context.set_tensor_address(port, where[name])
        if memory[1]:
            context.set_device_memory(*memory)
        if not context.execute_async_v3(stream):
            raise self._loader.complaint(f"to run {title}")

    @contextmanager
    def profiled(self) -> Iterator[tuple[Contexts, list[tuple[str, float]]]]:
        """Others for the block; the layers that they run and their microseconds, a list that grows.

        No graph may be captured from a context that has or had a profiler: TensorRT for RTX 1.4
        records its events there, and where an engine runs several times in one graph,
        cudaGraphInstantiate ends the process by SIGSEGV or gives an unknown error (H100, driver
        580.159; TensorRT alone does it too).
        """
        told: list[tuple[str, float]] = []
        others = Contexts(self._loader, self._engines)
        try:
            with ExitStack() as stack:
                for context in others._contexts.values():
                    stack.enter_context(self._loader.profiling(context, told))
                yield others, told
        finally:
            others.close()
