"""Turns a lowered model into the parts of a segmented bundle: segments to build, and a schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

import opfuse
from opfuse.engine import gpu, wheel
from opfuse.engine.backend import EngineInfo, Request, TensorInfo
from opfuse.engine.footprint import lives
from opfuse.engine.layers import dtype_name
from opfuse.engine.outline import outline
from opfuse.engine.profile import Profile
from opfuse.engine.tensors import Typed, range_of
from opfuse.errors import EngineError
from opfuse.files import file_hash, write_atomically
from opfuse.graph.collectives import Rank, rank_of
from opfuse.graph.protos import type_name
from opfuse.runtime import bundle, memory
from opfuse.runtime.library import describe
from opfuse.runtime.lock import Lock
from opfuse.runtime.schedule import (
    EngineStep,
    Schedule,
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
    made = outline(model, base_dir, library, around_attention=around_attention)
    models = [base_dir / f"{prefix}-{index}.onnx" for index in range(len(made.models))]
    for path, part in zip(models, made.models, strict=True):
        write_atomically(path, part.SerializeToString())
    return Draft(
        made.schedule,
        made.types,
        tuple(models),
        {value.name: made.values(value.name) for value in made.schedule.constants},
        made.left,
        library,
        rank_of(model),
    )


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
    found = lives(parts.schedule.lifetimes(), parts.types, profile)
    return memory.place(found).bytes, memory.unshared(found)


def summary(parts: Draft, built: Sequence[EngineInfo], profile: Profile) -> EngineInfo:
    """The segments as one engine, which is not written yet."""
    between = _largest(parts, profile)
    counted = Counter(step.op for step in parts.schedule.plugins())
    runs = sum(isinstance(step, EngineStep) for step in parts.schedule.steps)
    shared = "" if runs == len(built) else f", {len(built)} of them distinct,"
    notes = [
        f"{runs} segments{shared} and {sum(counted.values())} plugin launches",
        f"what lies between them takes {between[0] / 1e6:.1f} MB at the largest shapes "
        f"({between[1] / 1e6:.1f} MB if nothing shared memory)",
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
