"""Decides for each distinct group of plugins whether it pays: measured, from the lock, or known."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from onnx import ModelProto

from opfuse import child, lockfile
from opfuse.config import Config
from opfuse.engine import assemble, gpu, verdicts, wheel
from opfuse.engine.backend import Backend, Request
from opfuse.engine.cut import leave
from opfuse.engine.parts import extract, functions_of
from opfuse.engine.profile import LEVELS, Profile, resolve
from opfuse.engine.regions import Region, regions
from opfuse.engine.select import select
from opfuse.engine.tensors import Typed, range_of, types_of
from opfuse.engine.verdicts import LEAVE, Verdict
from opfuse.errors import EngineError
from opfuse.files import file_hash, scratch, write_atomically
from opfuse.progress import Progress

_ROUNDS = 9
# Not seen to win as a layer of an engine, where nobody measured.
_UNKNOWN = ("FlashAttention", "PackedAttention", "GemmAct", "GatedGemm")
_CAPABILITY = {"A100": "8.0", "H100": "9.0", "H200": "9.0", "B200": "10.0", "L4": "8.9"}
_CAPABILITY |= {"RTX4090": "8.9", "RTX5090": "12.0"}


@dataclass(frozen=True)
class Decided:
    """The choice and the reason for every plugin node by its name, and what to tell of it all."""

    nodes: Mapping[str, tuple[str, str]]
    note: str


def decide(
    model: ModelProto, base_dir: Path, library: Path, config: Config, progress: Progress
) -> Decided:
    """Leave the plugins of ``model`` that do not pay on the target GPU, in place.

    With ``config.tune`` each distinct region that the lock has no verdict on is built in all its
    variants, timed, and its verdict written at once, so a run that is killed goes on where it was.
    Otherwise the lock decides, and where it has nothing, the shipped table of the architecture.

    Args:
        model: From stages/lower, with every plugin that the library has.
        base_dir: The private folder that holds the model's external weights.
        library: The plugin library.
        config: Backend, shapes, lock, and whether to measure.
        progress: Told about each region.

    Raises:
        InputError: The lock or the shapes are wrong.
    """
    tuner = _Tuner(model, base_dir, library, config, progress)
    tuner.measure()
    return tuner.apply()


class _Tuner:
    """One model, its regions, and what is known of them."""

    def __init__(
        self, model: ModelProto, base_dir: Path, library: Path, config: Config, progress: Progress
    ) -> None:
        self._model, self._base_dir, self._library = model, base_dir, library
        self._config, self._progress = config, progress
        self._backend = select(config.backend).backend
        self._types = types_of(model)
        given = (config.min_shapes, config.opt_shapes, config.max_shapes)
        self._profile = resolve(model.graph, given)
        self._regions = regions(model, self._types)
        here = gpu.current()
        self._capability = here.compute_capability if here else _CAPABILITY[config.gpu]
        self._gpu = here.name if here else f"no GPU here, {config.gpu}"
        self._target = verdicts.target_of(self._capability, _tensorrt(self._backend))
        self._lock = lockfile.read(config.lock) if config.lock.exists() else {}
        self._known = verdicts.read(self._lock.get(verdicts.SECTION), self._target)
        self._digest = file_hash(library)[:12]

    def measure(self) -> None:
        """Time every distinct region that there is no verdict on."""
        if not self._config.tune or gpu.current() is None:
            return
        todo = {
            key: region
            for region in self._regions
            if (key := self._key(region)) not in self._known
            or self._known[key].library != self._digest
        }
        began = time.monotonic()
        for done, (key, region) in enumerate(todo.items()):
            left = (time.monotonic() - began) / done * (len(todo) - done) if done else None
            text = "+".join(self._ops(region)) + (f", {left:.0f} s left" if left else "")
            self._progress.step(text, done, len(todo))
            self._known[key] = self._measured(region)
            self._save()

    def _save(self) -> None:
        section = dict(self._lock.get(verdicts.SECTION, {}))
        section[self._target] = {key: item.as_dict() for key, item in self._known.items()}
        self._lock = lockfile.merged(self._lock, {verdicts.SECTION: section})
        lockfile.write(self._config.lock, self._lock)

    def apply(self) -> Decided:
        """Leave what does not pay."""
        table = verdicts.table(self._capability) if self._backend.name == "segmented" else {}
        found: dict[str, tuple[str, str]] = {}
        sources = set()
        for region in self._regions:
            verdict = self._known.get(self._key(region)) or self._unmeasured(region, table)
            sources.add(verdict.source)
            for index in region.group:
                node = self._model.graph.node[index]
                takes = verdict.takes(node.op_type)
                found[node.name] = "plugin" if takes else LEAVE, verdict.reason()
                if not takes:
                    leave(self._model, node)
        told = ", ".join(sorted(sources)) or "no plugin"
        return Decided(found, f"plugins or TensorRT for {self._gpu} ({self._target}): {told}")

    def _unmeasured(self, region: Region, table: Mapping[str, Any]) -> Verdict:
        ops = self._ops(region)
        if self._backend.name != "segmented":
            taken = [op for op in ops if op not in _UNKNOWN]
            return Verdict("+".join(taken) or LEAVE, ops, {}, "", "not measured")
        work: dict[str, int] = {}
        for index in region.group:
            node = self._model.graph.node[index]
            work[node.op_type] = sum(map(self._elements, node.output))
        return verdicts.by_table(table, ops, work)

    def _elements(self, name: str) -> int:
        typed = self._types.get(name)
        found = None if typed is None else range_of(typed, self._profile)
        return 1 if found is None else prod(found.opt)

    def _ops(self, region: Region) -> tuple[str, ...]:
        nodes = self._model.graph.node
        return tuple(dict.fromkeys(nodes[index].op_type for index in region.group))

    def _key(self, region: Region) -> str:
        """The region and the sizes of the profile: verdicts on other shapes are others."""
        ranges = [_range(self._types.get(name), self._profile) for name in region.inputs]
        return hashlib.sha256(f"{region.key} {ranges}".encode()).hexdigest()[:16]

    def _measured(self, region: Region) -> Verdict:
        ops = self._ops(region)
        ranges = {n: _range(self._types.get(n), self._profile) for n in region.inputs}
        known = {name: found for name, found in ranges.items() if found is not None}
        times: verdicts.Times = {}
        if len(known) == len(ranges):
            points = _points(known)
            profile = replace(self._profile, ranges=known)
            with scratch() as folder:
                paths = {
                    name: path
                    for name, taken in _variants(ops)
                    if (path := self._built(region, taken, profile, folder / name)) is not None
                }
                times = self._timed(paths, points) if LEAVE in paths else {}
        return verdicts.decide(times, ops, self._digest)

    def _built(
        self, region: Region, taken: Iterable[str], profile: Profile, path: Path
    ) -> Path | None:
        """The region with these plugins, as an engine or a bundle; None where that fails."""
        ends = [
            [self._types[name].info(name) for name in names]
            for names in (region.inputs, region.outputs)
            if all(name in self._types for name in names)
        ]
        if len(ends) < 2:
            return None
        part = extract(self._model, region.nodes, *ends)
        del part.functions[:]
        part.functions.extend(self._model.functions)
        for place, index in enumerate(region.nodes):
            if index in region.group and part.graph.node[place].op_type not in taken:
                leave(part, part.graph.node[place])
        used = functions_of(part, part.graph.node)
        del part.functions[:]
        part.functions.extend(used)
        library = self._library if taken else None
        try:
            if self._backend.name == "segmented":
                return self._bundle(part, library, profile, path)
            return self._engine(part, library, profile, path)
        except EngineError as error:
            self._progress.step(f"{path.name}: {error.what.splitlines()[0]}")
            return None

    def _bundle(self, part: ModelProto, library: Path | None, profile: Profile, path: Path) -> Path:
        parts = assemble.draft(part, self._base_dir, library)
        with scratch() as folder:
            made = assemble.requests(parts, profile, folder, verbose=self._config.debug)
            built = self._child(self._backend.build, [made])
            assemble.pack(parts, built, profile, None, path, embed=True)
        return path

    def _engine(self, part: ModelProto, library: Path | None, profile: Profile, path: Path) -> Path:
        model = self._base_dir / "region.onnx"
        write_atomically(model, part.SerializeToString())
        self._child(self._backend.build, [Request(model, path, dict(profile.ranges), library)])
        return path

    def _timed(
        self, paths: Mapping[str, Path], points: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> verdicts.Times:
        arguments = [dict(paths), points, _ROUNDS, self._config.seed]
        try:
            times: verdicts.Times = self._child("opfuse.runtime.tuning:compare", arguments)
        except EngineError:
            return {}
        return times

    def _child(self, function: str, arguments: list[Any]) -> Any:
        with scratch() as folder:
            return child.run(
                function,
                arguments,
                task="tuning",
                time_limit=self._config.time_limit,
                env=self._backend.environment(folder),
            )


def _variants(ops: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """What is tried of a region: no plugin, all, and where there are several each alone."""
    found: list[tuple[str, tuple[str, ...]]] = [(LEAVE, ()), ("+".join(ops), ops)]
    return found + [(op, (op,)) for op in ops if len(ops) > 1]


def _range(typed: Typed | None, profile: Profile) -> Any:
    return None if typed is None else range_of(typed, profile)


def _points(ranges: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The distinct shapes of the inputs at the levels of the profile, the usual one first."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for level in ("opt", *(level for level in LEVELS if level != "opt")):
        shapes = {name: getattr(levels, level) for name, levels in ranges.items()}
        if shapes not in found.values():
            found[level] = shapes
    return found


def _tensorrt(backend: Backend) -> str:
    """The TensorRT that a backend builds with, and its version."""
    installed = wheel.versions()
    if backend.name != "segmented":
        return f"{backend.name} {installed.get(backend.name, '')}".strip()
    name = "tensorrt" if "tensorrt" in installed else "tensorrt-rtx"
    return f"segmented {name} {installed.get(name, '')}".strip()
