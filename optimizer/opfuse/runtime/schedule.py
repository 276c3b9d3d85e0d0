"""What a bundle does, step by step: TensorRT segments and plugin launches over named tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from opfuse.errors import InputError
from opfuse.graph.native import UNREAD_SUM
from opfuse.graph.protos import BITS
from opfuse.runtime.copies import MOVES, Box, Move

AttributeValue = float | int | str


@dataclass(frozen=True)
class Value:
    """A tensor: ``dtype`` is an ONNX element type; a dimension of ``shape`` is a size or a text."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineStep:
    """Runs the engine in the bundle's member ``engine``, which several steps may do.

    ``input_ports`` and ``output_ports`` are the engine's own names for the tensors in ``inputs``
    and ``outputs``, in their order.
    """

    engine: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_ports: tuple[str, ...]
    output_ports: tuple[str, ...]

    @staticmethod
    def alone(engine: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> EngineStep:
        """A step of an engine that has the names of the schedule."""
        return EngineStep(engine, inputs, outputs, inputs, outputs)


@dataclass(frozen=True)
class PluginStep:
    """Launches the plugin ``op``; ``node`` is what the model calls it."""

    op: str
    node: str
    attributes: Mapping[str, AttributeValue]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ViewStep:
    """Another name and shape for a tensor, in the memory of that tensor: nothing runs.

    ``target`` is the shape as ONNX's Reshape takes it: 0 keeps a size, one -1 is what is left.
    """

    inputs: tuple[str]
    outputs: tuple[str]
    target: tuple[int, ...]

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the view of a tensor of shape ``source``.

        Raises:
            InputError: No view of this target has as many elements.
        """
        sizes = [source[i] if size == 0 else size for i, size in enumerate(self.target)]
        given = prod(size for size in sizes if size != -1)
        whole = prod(source)
        if -1 in sizes and given and whole % given == 0:
            sizes[sizes.index(-1)] = whole // given
        if prod(sizes) != whole or -1 in sizes:
            what = f"{self.inputs[0]!r} of shape {list(source)}"
            raise InputError(f"{what} cannot be seen as {list(self.target)}")
        return tuple(sizes)


@dataclass(frozen=True)
class CopyStep:
    """Moves data by one launch of the plugin library, which no TensorRT has to be there for.

    No move reads what another one of them writes.
    """

    moves: tuple[Move, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that are read, each once."""
        return tuple(dict.fromkeys(name for move in self.moves for name in move.inputs))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that are written."""
        return tuple(name for move in self.moves for name in move.outputs)

    def shapes(self, known: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shape of each output, where those of the inputs are known.

        Raises:
            InputError: A move does not take them.
        """
        found: dict[str, tuple[int, ...]] = {}
        for move in self.moves:
            made = move.shapes([known[name] for name in move.inputs])
            found |= zip(move.outputs, made, strict=True)
        return found


Step = EngineStep | PluginStep | ViewStep | CopyStep


@dataclass(frozen=True)
class Schedule:
    """The steps in order, and every tensor that they touch.

    ``inputs`` and ``outputs`` are the model's, ``between`` what only steps hand to each other,
    ``constants`` the weights that are not inside an engine: those that plugins read, and those in
    which the runs of one engine differ. The bundle holds them by these names.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    between: tuple[Value, ...]
    constants: tuple[Value, ...]
    steps: tuple[Step, ...]

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """The first and the last step that touch each of ``between``, by itself or by a view.

        Views have no memory of their own and are not among them.
        """
        found: dict[str, tuple[int, int]] = {}
        own = {value.name for value in self.between}
        seen: dict[str, str] = {}
        for index, step in enumerate(self.steps):
            if isinstance(step, ViewStep):
                (source,), (view,) = step.inputs, step.outputs
                seen[view] = seen.get(source, source)
            for name in (seen.get(name, name) for name in (*step.inputs, *step.outputs)):
                if name in own:
                    found[name] = (found.get(name, (index, index))[0], index)
        return found

    def engines(self) -> tuple[EngineStep, ...]:
        """The first step of each engine."""
        found: dict[str, EngineStep] = {}
        for step in self.steps:
            if isinstance(step, EngineStep):
                found.setdefault(step.engine, step)
        return tuple(found.values())

    def written(self) -> tuple[tuple[str, ...], ...]:
        """The tensors that hold something of each step when it has run; views write nothing.

        A norm may leave the memory of a sum that nobody reads as it was.
        """
        return tuple(map(_written, self.steps))

    def titles(self) -> tuple[str, ...]:
        """What messages and reports call each step: one of several runs by what it writes."""
        runs = Counter(step.engine for step in self.steps if isinstance(step, EngineStep))
        return tuple(_title(step, runs) for step in self.steps)

    def plugins(self) -> Iterator[PluginStep]:
        """The steps that launch a plugin."""
        return (step for step in self.steps if isinstance(step, PluginStep))

    def copies(self) -> tuple[CopyStep, ...]:
        """The steps that move data."""
        return tuple(step for step in self.steps if isinstance(step, CopyStep))

    def needs_library(self) -> bool:
        """Whether a step is a launch of the plugin library."""
        return any(isinstance(step, PluginStep | CopyStep) for step in self.steps)

    def boxes(
        self, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[int, tuple[tuple[Box, bool], ...]]:
        """What each step copies that moves data, by its number, and whether that may begin early.

        It may where no step writes what is read, and no other step touches what is written.
        """
        given = {value.name for value in (*self.inputs, *self.constants)}
        returned = {value.name for value in self.outputs}
        types = {value.name: value.dtype for value in (*self.inputs, *self.constants)}
        types |= {value.name: value.dtype for value in (*self.between, *self.outputs)}
        found = {}
        for index, step in enumerate(self.steps):
            if isinstance(step, CopyStep):
                boxes = [
                    box
                    for move in step.moves
                    for box in move.boxes(
                        [shapes[name] for name in move.inputs], BITS[types[move.inputs[0]]] // 8
                    )
                ]
                found[index] = tuple(
                    (box, box.source in given and box.target in returned) for box in boxes
                )
        return found

    def check(self) -> None:
        """Refuse a schedule in which a step reads what no earlier one has written.

        Raises:
            InputError: The schedule is not one that opfuse writes.
        """
        ready = {value.name for value in (*self.inputs, *self.constants)}
        known = ready | {value.name for value in (*self.outputs, *self.between)}
        for index, step in enumerate(self.steps):
            for name in step.inputs:
                if name not in ready:
                    raise InputError(f"step {index} reads {name!r} before it is written")
            for name in step.outputs:
                if name in ready or name not in known:
                    raise InputError(f"step {index} writes {name!r}, which is not its to write")
                ready.add(name)
        for value in self.outputs:
            if value.name not in ready:
                raise InputError(f"no step writes the output {value.name!r}")

    def as_dict(self) -> dict[str, Any]:
        """The schedule as JSON has it."""
        facts = asdict(self)
        kinds = [_KINDS[type(step)] for step in self.steps]
        facts["steps"] = [
            {"kind": kind, **step} for kind, step in zip(kinds, facts["steps"], strict=True)
        ]
        return facts

    @staticmethod
    def from_dict(facts: Mapping[str, Any]) -> Schedule:
        """Read what `as_dict` wrote.

        Raises:
            KeyError, TypeError: It is something else.
            InputError: A step reads what no earlier one has written.
        """
        values = {
            key: tuple(Value(v["name"], int(v["dtype"]), tuple(v["shape"])) for v in facts[key])
            for key in ("inputs", "outputs", "between", "constants")
        }
        schedule = Schedule(**values, steps=tuple(map(_step, facts["steps"])))
        schedule.check()
        return schedule


def _written(step: Step) -> tuple[str, ...]:
    if isinstance(step, ViewStep):
        return ()
    is_short = isinstance(step, PluginStep) and step.attributes.get(UNREAD_SUM) == 0
    return step.outputs[:1] if is_short else step.outputs


def _title(step: Step, runs: Mapping[str, int]) -> str:
    if isinstance(step, PluginStep):
        return step.node
    if isinstance(step, ViewStep):
        return f"a view of {step.inputs[0]!r}"
    if isinstance(step, CopyStep):
        return f"{', '.join(map(repr, step.outputs))} (Copy)"
    return step.engine if runs[step.engine] == 1 else f"{step.engine} -> {step.outputs[0]!r}"


_KINDS: Mapping[type[Step], str] = {
    EngineStep: "engine",
    PluginStep: "plugin",
    ViewStep: "view",
    CopyStep: "copy",
}


def _step(facts: Mapping[str, Any]) -> Step:
    if facts["kind"] == "copy":
        return CopyStep(tuple(map(_move, facts["moves"])))
    reads, writes = tuple(facts["inputs"]), tuple(facts["outputs"])
    if facts["kind"] == "engine":
        ports = tuple(facts["input_ports"]), tuple(facts["output_ports"])
        if tuple(map(len, ports)) != (len(reads), len(writes)):
            raise InputError(f"a step of {facts['engine']} has not a tensor for each port")
        return EngineStep(facts["engine"], reads, writes, *ports)
    if facts["kind"] == "view":
        (source,), (view,) = reads, writes
        return ViewStep((source,), (view,), tuple(map(int, facts["target"])))
    return PluginStep(facts["op"], facts["node"], dict(facts["attributes"]), reads, writes)


def _move(facts: Mapping[str, Any]) -> Move:
    if facts["op"] not in MOVES:
        raise InputError(f"no step moves data by {facts['op']}")
    numbers = {
        name: tuple(map(int, found)) if isinstance(found, (list, tuple)) else int(found)
        for name, found in facts["numbers"].items()
    }
    return Move(facts["op"], numbers, tuple(facts["inputs"]), tuple(facts["outputs"]))
