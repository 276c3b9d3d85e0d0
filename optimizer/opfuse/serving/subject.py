"""What an engine file holds: inputs, outputs, plugins, and by which TensorRT it was built."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx import TensorProto

from opfuse.engine import gpu
from opfuse.errors import InputError, MissingComponent
from opfuse.graph.collectives import SPEAKING
from opfuse.graph.filekind import no_engine
from opfuse.graph.protos import type_name
from opfuse.runtime import bundle, library
from opfuse.runtime.engine import Engine
from opfuse.runtime.origin import report_of
from opfuse.runtime.schedule import Value
from opfuse.runtime.tensorrt import import_module, module_of
from opfuse.serving import signature
from opfuse.serving.signature import Port

_OF_THE_LIBRARY = b"opfuse_tensorrt_headers"  # a symbol: its bytes lie in engines as they are
_BUILD = "opfuse build ... --report R.json, then opfuse package ... --build-report R.json"


@dataclass(frozen=True)
class Subject:
    """An engine file, and what was found out about it.

    Args:
        path: The file.
        maker: "tensorrt" or "tensorrt_rtx".
        version: Its version.
        plugins: Whether it needs the plugin library.
        embedded: Whether it holds that itself.
        ports: Its inputs and outputs.
        rank: Which rank of a sharded model it is, as its report says; None for a whole model.
        speaks: Whether plugins of it speak to other ranks.
    """

    path: Path
    maker: str
    version: str
    plugins: bool
    embedded: bool
    ports: tuple[Port, ...]
    rank: Mapping[str, Any] | None = None
    speaks: bool = False

    @property
    def for_tensorrt(self) -> bool:
        """Whether TensorRT itself loads it: no bundle, and not built by TensorRT for RTX."""
        return self.maker == "tensorrt" and not bundle.is_bundle(self.path)


def examine(path: Path, report: Path | None) -> Subject:
    """Finds out about an engine or a bundle.

    Args:
        path: The file.
        report: The JSON report of its build; None takes the one beside it, if it is that.

    Raises:
        InputError: It is no engine, or the report is not of it.
        MissingComponent: Only TensorRT could tell, and there is no GPU.
    """
    head, found = _first_look(path)
    if bundle.is_bundle(path):
        return _bundle(path)
    if kind := no_engine(head):
        raise InputError(f"{path} is {kind}, no engine", "name what opfuse build wrote")
    maker = module_of(head)
    facts = report_of(path, report, _BUILD)
    if facts is not None:
        try:
            made = facts["engine"]
            plugins = bool(made["plugin_layers"])
            ports = signature.from_report(facts)
            speaks = not set(SPEAKING).isdisjoint(made["plugin_layers"])
            rank = facts["model"].get("rank")
            return Subject(path, maker, str(made["version"]), plugins, found, ports, rank, speaks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise InputError(f"the report of {path} is none of a build: {what}", _BUILD) from None
    if gpu.absent():
        raise MissingComponent(
            f"what {path} takes and gives only TensorRT can tell, which needs a GPU for it: "
            f"{gpu.absent()}",
            f"give the report of its build, which has it all: {_BUILD}",
        )
    return _loaded(path, maker, found)


def _loaded(path: Path, maker: str, embedded: bool) -> Subject:
    """What TensorRT says of an engine; the names of dimensions are gone by then."""
    with Engine.load(path) as engine:
        usual = engine.usual_shapes()
        inputs = [replace(_port(v, True), tuned=usual[v.name]) for v in engine.inputs]
        ports = (*inputs, *(_port(value, False) for value in engine.outputs))
    version = str(import_module(maker).__version__)  # which no other version's engine loads in
    plugins = embedded or (path.parent / library.FILE_NAME).is_file()
    return Subject(path, maker, version, plugins, embedded, ports)


def _first_look(path: Path) -> tuple[bytes, bool]:
    """The first bytes of the file, and whether the plugin library is in it."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if not head:
                return head, False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return head, content.find(_OF_THE_LIBRARY) >= 0
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}", "name an engine") from None


def _bundle(path: Path) -> Subject:
    opened = bundle.Bundle.open(path)
    profile = opened.manifest["profile"]
    schedule = opened.schedule
    inputs = [
        replace(_port(value, True), levels=signature.levels(profile.get(value.name)))
        for value in schedule.inputs
    ]
    ports = (*inputs, *(_port(value, False) for value in schedule.outputs))
    lock = opened.lock
    embedded = opened.holds(bundle.LIBRARY)
    rank = None if opened.rank is None else asdict(opened.rank)
    return Subject(path, lock.module, lock.tensorrt, bool(lock.library), embedded, ports, rank)


def _port(value: Value, is_input: bool) -> Port:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    dtype = _DTYPES.get(value.dtype, type_name(value.dtype).lower())
    return Port(value.name, is_input, dtype, shape, signature.symbols(value.shape))


_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
