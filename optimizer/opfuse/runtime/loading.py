"""From a file to a program: plain engines of every TensorRT, and segmented bundles."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.files import file_hash
from opfuse.runtime import abi, agreement, bundle, group, library
from opfuse.runtime.cuda import Device
from opfuse.runtime.lock import check_gpu, check_library, check_tensorrt
from opfuse.runtime.program import MakeCopies, MakePlugin, Program
from opfuse.runtime.schedule import EngineStep, Schedule, Value
from opfuse.runtime.tensorrt import Loader, import_module, module_of, ports

PLAIN = "engine"


def load(path: Path, plugins: Path | None, open_device: Callable[..., Device]) -> Program:
    """Load an engine or a bundle.

    Args:
        path: The file.
        plugins: The plugin library, where the file does not hold it.
        open_device: Opens the GPU; the number of the rank on this host is passed for a rank's
            bundle.

    Raises:
        MissingComponent, InputError, EngineError: As for `opfuse.runtime.Engine.load`.
    """
    if bundle.is_bundle(path) or path.suffix == ".opfuse":
        return _bundle(path, plugins, open_device)
    return _plain(path, plugins, open_device)


def _plain(path: Path, plugins: Path | None, open_device: Callable[..., Device]) -> Program:
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "name an engine") from None
    device = open_device()
    api = import_module(module_of(plan))
    beside = path.parent / library.FILE_NAME
    try:
        loader = Loader(api, [] if plugins is None else [plugins])
        engine = loader.load(plan, str(path))
    except EngineError:
        # opfuse build --no-embed-plugins puts the library there.
        if plugins is not None or not beside.is_file():
            raise
        loader = Loader(api, [beside])
        engine = loader.load(plan, str(path))
    schedule = _one_step(engine)
    usual = {
        value.name: tuple(engine.get_tensor_profile_shape(value.name, 0)[1])
        for value in schedule.inputs
        if "?" in value.shape
    }
    return Program(schedule, loader, {PLAIN: engine}, {}, None, None, device, usual)


def _one_step(engine: Any) -> Schedule:
    """The schedule of an engine alone."""
    found = ports(engine)
    values = [
        Value(port.name, port.element, tuple("?" if dim < 0 else dim for dim in port.shape))
        for port in found
    ]
    inputs = tuple(v for v, port in zip(values, found, strict=True) if port.is_input)
    outputs = tuple(v for v, port in zip(values, found, strict=True) if not port.is_input)
    names = tuple(v.name for v in inputs), tuple(v.name for v in outputs)
    return Schedule(inputs, outputs, (), (), (EngineStep.alone(PLAIN, *names),))


def _bundle(path: Path, plugins: Path | None, open_device: Callable[..., Device]) -> Program:
    opened = bundle.Bundle.open(path)
    rank = opened.rank
    if rank is None:
        return _opened(opened, plugins, open_device)
    members = group.join(rank.size, path)
    with members.telling():
        device = open_device(members.world.local_rank)
        members.agree({**agreement.facts(opened, rank), "gpu": group.gpu_name(device)})
        program = _opened(opened, plugins, lambda: device)
        if opened.lock.library:
            members.open(_library(opened, plugins))
    program.group = members
    return program


def _opened(
    opened: bundle.Bundle, plugins: Path | None, open_device: Callable[[], Device]
) -> Program:
    path, lock = opened.path, opened.lock
    make_plugin = _plugins(opened, plugins) if lock.library else None
    copy = _copies(opened, plugins) if opened.schedule.copies() else None
    device = open_device()
    api = import_module(lock.module)
    check_tensorrt(lock, path, api.__version__)
    check_gpu(lock, path, device.gpu)
    loader = Loader(api)
    engines = {}
    for step in opened.schedule.engines():
        engines[step.engine] = loader.load(opened.read(step.engine), f"{path}: {step.engine}")
    usual = {name: tuple(levels[1]) for name, levels in opened.manifest["profile"].items()}
    constants = {name: opened.read(member) for name, member in opened.constants.items()}
    return Program(opened.schedule, loader, engines, constants, make_plugin, copy, device, usual)


def _plugins(opened: bundle.Bundle, explicit: Path | None) -> MakePlugin:
    return partial(abi.Plugin, _library(opened, explicit))


def _copies(opened: bundle.Bundle, explicit: Path | None) -> MakeCopies:
    return partial(abi.copy, _library(opened, explicit))


def _library(opened: bundle.Bundle, explicit: Path | None) -> ctypes.CDLL:
    """The plugin library of a bundle: the one that is named, else its own, else the package's."""
    lock = opened.lock
    if explicit is None and opened.holds(bundle.LIBRARY):
        data = opened.read(bundle.LIBRARY)
        digest = hashlib.sha256(data).hexdigest()
        check_library(lock, opened.path, "its own", digest)
        return _load_from_memory(data, digest)
    path = _beside(opened.path) if explicit is None else library.find(explicit)
    check_library(lock, opened.path, path, file_hash(path))
    return abi.load(path)


_loaded: dict[str, tuple[int, ctypes.CDLL]] = {}
"""Libraries that were loaded from memory, by their hash, with descriptors that stay open.

The dynamic linker takes a library for one that it has where the path is the same, and a descriptor
that is closed is given out again.
"""


def _beside(path: Path) -> Path:
    beside = path.parent / library.FILE_NAME
    return beside if beside.is_file() else library.find()


def _load_from_memory(data: bytes, digest: str) -> ctypes.CDLL:
    """A library that exists in memory only."""
    if digest not in _loaded:
        try:
            descriptor = os.memfd_create(library.FILE_NAME)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
        except OSError as error:
            raise MissingComponent(f"no memory for the plugin library: {error.strerror}") from None
        _loaded[digest] = descriptor, abi.load(Path(f"/proc/self/fd/{descriptor}"))
    return _loaded[digest][1]
