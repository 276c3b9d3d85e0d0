"""Turns a lowered model into the parts of a segmented bundle: segments to build, and a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import opfuse
from opfuse.engine import gpu, wheel
from opfuse.engine.alike import merged
from opfuse.engine.backend import EngineInfo, Request, TensorInfo
from opfuse.engine.copies import copies
from opfuse.engine.cut import Copy, Cut, Segment, View, cut
from opfuse.engine.layers import dtype_name
from opfuse.engine.profile import Profile
from opfuse.engine.tensors import Typed, range_of, types_of
from opfuse.engine.views import views
from opfuse.errors import EngineError
from opfuse.files import file_hash, write_atomically
from opfuse.fusions.activation_body import KIND
from opfuse.graph.collectives import Rank, rank_of
from opfuse.graph.dist_collective import NATIVE, every_node
from opfuse.graph.protos import BITS, label, type_name
from opfuse.runtime import abi, bundle, memory
from opfuse.runtime.copies import Move
from opfuse.runtime.library import describe
from opfuse.runtime.lock import Lock
from opfuse.runtime.schedule import (
    CopyStep,
    EngineStep,
    PluginStep,
    Schedule,
    Step,
    Value,
    ViewStep,
)


@dataclass(frozen=True)
class Draft:
    """A cut model before its engines exist.

    ``models`` are the files of the engines in the order of their first runs in the schedule,
    ``weights`` the values that plugins and engines read, ``rank`` which of several ranks it is.
    """

    schedule: Schedule
    types: Mapping[str, Typed]
    models: tuple[Path, ...]
    weights: Mapping[str, bytes]
    left: Mapping[str, str]
    library: Path | None
    rank: Rank | None = None


def draft(
    model: ModelProto,
    base_dir: Path,
    library: Path | None,
    *,
    around_attention: bool = True,
    prefix: str = "segment",
) -> Draft:
    """Cut ``model`` and write its segments into ``base_dir``.

    Args:
        model: From stages/lower. Plugin nodes that do not pay become calls of their body.
        base_dir: A private folder, which holds the external weights of the model.
        library: The plugin library; None where the model has no plugin node.
        around_attention: Whether attention that is no plugin may be cut off from the rest.
        prefix: What the files of the segments are called, before a number.

    Raises:
        EngineError: The model cannot be cut, or speaks to other ranks by layers of TensorRT.
    """
    if any(node.op_type == NATIVE for node in every_node(model)):
        raise EngineError(
            f"the model has {NATIVE}, for which a bundle has no communicator",
            "use a plugin library with AllReduce and --lower plugin, or --backend tensorrt",
        )
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    check = _Check(types, library)
    moves = {} if library is None else copies(model, types)
    plan = cut(
        model,
        ranks,
        check.reason,
        around_attention=around_attention,
        views=views(model, types),
        copies=moves,
    )
    weigh = _Weights(model, base_dir)
    made, runs = _engines(model, plan, types, weigh)
    models = [base_dir / f"{prefix}-{index}.onnx" for index in range(len(made))]
    for path, part in zip(models, made, strict=True):
        write_atomically(path, part.SerializeToString())
    schedule = _schedule(model, plan, runs, moves, types)
    weights = {value.name: weigh.values(value.name) for value in schedule.constants}
    return Draft(schedule, types, tuple(models), weights, plan.left, library, rank_of(model))


def _engines(
    model: ModelProto, plan: Cut, types: Mapping[str, Typed], weigh: _Weights
) -> tuple[list[ModelProto], list[EngineStep]]:
    """The models of the engines, and what each segment does with which of them."""
    segments = plan.segments
    for segment in segments:
        _check_known((*segment.inputs, *segment.outputs), types)
    infos = {n: types[n].info(n) for s in segments for n in (*s.inputs, *s.outputs)}
    infos |= {item.name: item for item in (*model.graph.input, *model.graph.output)}
    return merged(model, segments, types, infos, weigh.values)


def requests(
    parts: Draft, profile: Profile, folder: Path | None, *, verbose: bool
) -> list[Request]:
    """What the child process has to build; the engines go into ``folder``, without one nowhere.

    Raises:
        EngineError: The sizes of a tensor between two segments do not follow from the inputs.
    """
    made = []
    for step, model in zip(parts.schedule.engines(), parts.models, strict=True):
        ranges = {}
        for name, port in zip(step.inputs, step.input_ports, strict=True):
            if all(isinstance(dim, int) for dim in parts.types[name].shape):
                continue
            found = profile.ranges.get(name) or range_of(parts.types[name], profile)
            if found is None:
                raise EngineError(
                    f"the sizes of {name!r}, which lies between two segments, are not known",
                    "use another backend, or --lower leave, which makes one segment",
                )
            ranges[port] = found
        engine = None if folder is None else folder / step.engine.replace("/", "-")
        made.append(Request(model, engine, ranges, verbose=verbose))
    return made


def pack(
    parts: Draft,
    built: Sequence[EngineInfo],
    profile: Profile,
    base_dir: Path | None,
    output: Path,
    *,
    embed: bool,
) -> EngineInfo:
    """Write the bundle, and describe it as one engine.

    Args:
        parts: What the engines were built from.
        built: What was built, in order.
        profile: The shapes of the inputs.
        base_dir: Holds ``fused.onnx`` and its data file; None leaves them out.
        output: The bundle.
        embed: Whether the plugin library goes into it.

    Raises:
        InputError: The file cannot be written.
    """
    members: dict[str, Path | bytes] = {
        step.engine: Path(info.path)
        for step, info in zip(parts.schedule.engines(), built, strict=True)
    }
    constants = {name: f"constants/{index}" for index, name in enumerate(parts.weights)}
    members |= {constants[name]: data for name, data in parts.weights.items()}
    used = parts.schedule.needs_library()
    lock = _lock(built[0] if built else no_engine(), parts.library if used else None)
    if used and embed and parts.library is not None:
        members[bundle.LIBRARY] = parts.library
    members |= {} if base_dir is None else _fallback(base_dir)
    planned, side_by_side = _largest(parts, profile)
    manifest = {
        "schedule": parts.schedule.as_dict(),
        "lock": lock.as_dict(),
        "constants": constants,
        "memory": {"between": planned, "between_unshared": side_by_side},
        "ranks": None if parts.rank is None else asdict(parts.rank),
        "profile": {name: list(levels) for name, levels in profile.ranges.items()},
    }
    digest, size = bundle.write(output, manifest, members)
    return replace(summary(parts, built, profile), bytes=size, sha256=digest)


class _Check:
    """Asks the plugin library whether it takes a node, before the graph is cut there."""

    def __init__(self, types: Mapping[str, Typed], library: Path | None) -> None:
        self._types = types
        self._library = None if library is None else abi.load(library)

    def reason(self, node: NodeProto) -> str:
        """Why the plugin cannot run this node; empty where it can."""
        names = [*node.input, *node.output]
        unknown = [name for name in names if name not in self._types]
        if self._library is None:
            return "no plugin library is loaded"
        if unknown:
            return f"the type or rank of {unknown[0]!r} is not known"
        elements = [self._types[name].element for name in names]
        try:
            with abi.Plugin(self._library, node.op_type, attributes(node)) as plugin:
                for at in range(len(names)):
                    if not plugin.supports(at, elements, len(node.input)):
                        spelt = ", ".join(map(type_name, elements))
                        return f"the plugin does not take the types {spelt}"
        except abi.PluginError as error:
            return str(error)
        return ""


def attributes(node: NodeProto) -> dict[str, float | int | str]:
    """The attributes of a plugin node as the C ABI takes them."""
    found: dict[str, float | int | str] = {}
    for item in node.attribute:
        if item.name in ("plugin_namespace", "plugin_version", KIND):
            continue
        value = helper.get_attribute_value(item)
        found[item.name] = value.decode() if item.type == AttributeProto.STRING else value
    return found


def _check_known(names: Sequence[str], types: Mapping[str, Typed]) -> None:
    for name in names:
        if name not in types:
            raise EngineError(
                f"the type or rank of {name!r}, at which the model would be cut, is not known",
                "use another backend, or --lower leave, which makes one segment",
            )


def _schedule(
    model: ModelProto,
    plan: Cut,
    runs: Sequence[EngineStep],
    moves: Mapping[int, Move],
    types: Mapping[str, Typed],
) -> Schedule:
    graph = model.graph
    weights = {item.name for item in graph.initializer}
    steps: list[Step] = []
    left = iter(runs)
    for step in plan.steps:
        if isinstance(step, Segment):
            steps.append(next(left))
        elif isinstance(step, View):
            steps.append(ViewStep((step.source,), (step.name,), step.target))
        elif isinstance(step, Copy):
            steps.append(CopyStep(tuple(moves[index] for index in step.nodes)))
        else:
            node = graph.node[step]
            ends = tuple(node.input), tuple(node.output)
            steps.append(PluginStep(node.op_type, label(node), attributes(node), *ends))
    inputs = [item.name for item in graph.input if item.name not in weights]
    outputs = [item.name for item in graph.output]
    touched = dict.fromkeys(name for step in steps for name in (*step.inputs, *step.outputs))
    outer = {*inputs, *outputs, *weights}
    schedule = Schedule(
        inputs=tuple(_value(name, types) for name in inputs),
        outputs=tuple(_value(name, types) for name in outputs),
        between=tuple(_value(name, types) for name in touched if name not in outer),
        constants=tuple(_value(name, types) for name in touched if name in weights),
        steps=tuple(steps),
    )
    missing = [name for name in outputs if name not in touched or name in (*inputs, *weights)]
    if missing:
        raise EngineError(
            f"output {missing[0]!r} is an input or a constant, which a bundle cannot return",
            "use another backend, or leave the output out of the model",
        )
    return schedule


def _value(name: str, types: Mapping[str, Typed]) -> Value:
    _check_known([name], types)
    typed = types[name]
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in typed.shape)
    return Value(name, typed.element, shape)


class _Weights:
    """The values of a model's weights, of which some lie in files."""

    def __init__(self, model: ModelProto, base_dir: Path) -> None:
        self._base_dir = base_dir
        self._tensors = {item.name: item for item in model.graph.initializer}

    def values(self, name: str) -> bytes:
        """The bytes of a weight."""
        tensor = TensorProto()
        tensor.CopyFrom(self._tensors[name])
        if tensor.data_location == TensorProto.EXTERNAL:
            load = onnx.external_data_helper.load_external_data_for_tensor
            load(tensor, str(self._base_dir))
            tensor.data_location = TensorProto.DEFAULT
        found: bytes = numpy_helper.to_array(tensor).tobytes()
        return found


def no_engine() -> EngineInfo:
    """Of a model that is plugins alone: the TensorRT that would build its segments."""
    name, version = next(iter(wheel.versions().items()), ("tensorrt-rtx", ""))
    return EngineInfo(name, version, "", "", 0, "", 0, {}, {}, {}, (), "the schedule")


def _lock(built: EngineInfo, library: Path | None) -> Lock:
    return Lock(
        module=built.backend.replace("-", "_"),
        tensorrt=built.version,
        gpu=gpu.current(),
        library="" if library is None else file_hash(library),
        architectures=() if library is None else describe(library).architectures,
        opfuse=opfuse.__version__,
    )


def _fallback(base_dir: Path) -> dict[str, Path | bytes]:
    """The fused model and the data file that it refers to."""
    files = sorted(base_dir.glob("fused*"))
    return {path.name: path for path in files}


def _largest(parts: Draft, profile: Profile) -> tuple[int, int]:
    """Bytes of what lies between the steps at the largest shapes: with one plan, and without."""
    lives = []
    for name, (first, last) in parts.schedule.lifetimes().items():
        typed = parts.types[name]
        found = range_of(typed, profile)
        if found is not None:
            size = (prod(found.max) * BITS[typed.element] + 7) // 8
            lives.append(memory.Life(name, size, first, last))
    return memory.place(lives).bytes, memory.unshared(lives)


def summary(parts: Draft, built: Sequence[EngineInfo], profile: Profile) -> EngineInfo:
    """The segments as one engine, which is not written yet."""
    between = _largest(parts, profile)
    counted = Counter(step.op for step in parts.schedule.plugins())
    runs = sum(isinstance(step, EngineStep) for step in parts.schedule.steps)
    shared = "" if runs == len(built) else f", {len(built)} of them distinct,"
    notes = [
        f"{runs} segments{shared} and {sum(counted.values())} plugin launches",
        f"what lies between them takes {between[0]} bytes at the largest shapes "
        f"({between[1]} if nothing shared memory)",
    ]
    if moved := [name for step in parts.schedule.copies() for name in step.outputs]:
        notes.append(f"copied by the bundle itself, without an engine: {', '.join(moved)}")
    return replace(
        built[0] if built else no_engine(),
        backend="segmented",
        bytes=0,
        sha256="",
        layers=sum(info.layers for info in built),
        layer_types=_total(info.layer_types for info in built),
        plugin_layers=dict(counted.most_common()),
        dtypes=_total(info.dtypes for info in built),
        io=tuple(_io(parts.schedule, profile)),
        notes=(*notes, *dict.fromkeys(note for info in built for note in info.notes)),
        left=dict(parts.left),
    )


def _total(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for item in counts:
        total.update(item)
    return dict(total.most_common())


def _io(schedule: Schedule, profile: Profile) -> list[TensorInfo]:
    found = []
    for mode, values in (("input", schedule.inputs), ("output", schedule.outputs)):
        for value in values:
            shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
            dtype = _DTYPES.get(value.dtype, type_name(value.dtype).lower())
            known = profile.ranges.get(value.name) if mode == "input" else None
            found.append(TensorInfo(value.name, mode, dtype_name(dtype), shape, known))
    return found


_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
