"""Builds the variants of regions side by side, and times those of each region against each other.

Engines of a region are small: what takes time is to start processes and to compile. So the
variants of several regions are built at once, by as many processes as there are processors, and
loaded and compiled by a few, which then time theirs one process after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from onnx import ModelProto

from opfuse import child
from opfuse.config import Config
from opfuse.engine import assemble
from opfuse.engine.backend import Backend, Request
from opfuse.engine.natives import substitute
from opfuse.engine.outline import attributes
from opfuse.engine.parts import extract, functions_of
from opfuse.engine.plugin_nodes import choose_tactic, is_plugin, leave
from opfuse.engine.profile import LEVELS, Profile
from opfuse.engine.regions import Region
from opfuse.engine.tensors import Typed, range_of
from opfuse.engine.verdicts import LEAVE, NATIVE, Times, plugins_of
from opfuse.errors import EngineError
from opfuse.files import scratch, write_atomically
from opfuse.progress import Progress
from opfuse.runtime import abi

_ROUNDS = 9
_AT_ONCE = 8  # regions whose engines lie on the disk at a time, with the weights of each
_PROCESSES = 8
_TIMERS = 4  # processes with a context on the GPU
_TACTICS = 6  # of a plugin that are tried, each with a copy of the weights on the disk
_UNKNOWN = "a size or a type in it is not known"
_SILENT = "it gave no times"

Settle = Callable[[str, Times, str], None]
"""Takes the key of a region, its times, and in words why there are none; one of both is empty."""
Case = tuple[Mapping[str, Path], Mapping[str, Mapping[str, tuple[int, ...]]]]
"""The files of variants, and the points to time them at, both by name."""


@dataclass(frozen=True)
class _Variant:
    """A region with some of its plugins: what is asked of the backend, and what comes of it."""

    key: str
    name: str
    argument: Any
    finish: Callable[[Any], None]
    path: Path


class Trials:
    """What all variants of one model share."""

    def __init__(
        self,
        model: ModelProto,
        base_dir: Path,
        types: Mapping[str, Typed],
        profile: Profile,
        library: Path,
        backend: Backend,
        config: Config,
        progress: Progress,
    ) -> None:
        self._model, self._base_dir, self._types = model, base_dir, types
        self._profile, self._library, self._backend = profile, library, backend
        self._config, self._progress = config, progress
        self._settling = Lock()

    def run(self, todo: Mapping[str, Region], settle: Settle) -> None:
        """Build and time regions.

        Args:
            todo: The regions by the keys of their verdicts.
            settle: Called with the times of each region as soon as they are there, or with the
                reason where it could not be built or run.
        """
        left = iter(todo.items())
        while some := dict(islice(left, _AT_ONCE)):
            with scratch() as folder:
                self._run(some, folder, settle)

    def _run(self, todo: Mapping[str, Region], folder: Path, settle: Settle) -> None:
        drafts = [
            item for key, region in todo.items() for item in self._drafts(key, region, folder)
        ]
        answers = self._built(drafts)
        with ThreadPoolExecutor(_PROCESSES) as pool:  # hashing leaves the interpreter to others
            list(pool.map(_finish, drafts, answers))
        paths: dict[str, dict[str, Path]] = {}
        refused: dict[str, str] = {}
        for item, built in zip(drafts, answers, strict=True):
            if isinstance(built, str):
                self._progress.step(f"{item.name}: {built}")
                refused[item.key] = f"{item.name}: {built}"
                continue
            paths.setdefault(item.key, {})[item.name] = item.path
        cases: dict[str, Case] = {
            key: (found, _points(self._ranges(todo[key])))
            for key, found in paths.items()
            if LEAVE in found and len(found) > 1
        }
        for key in todo:
            if key not in cases:
                settle(key, {}, refused.get(key, _UNKNOWN))
        self._time(cases, settle)

    def _ranges(self, region: Region) -> dict[str, Any]:
        found = {name: self._range(name) for name in region.inputs}
        return {name: levels for name, levels in found.items() if levels is not None}

    def _range(self, name: str) -> Any:
        typed = self._types.get(name)
        return None if typed is None else range_of(typed, self._profile)

    def _drafts(self, key: str, region: Region, folder: Path) -> Iterator[_Variant]:
        """The variants of a region, none where a size or a type in it is not known."""
        ranges = self._ranges(region)
        names = (*region.inputs, *region.outputs)
        if len(ranges) < len(region.inputs) or any(name not in self._types for name in names):
            return
        profile = replace(self._profile, ranges=ranges)
        for number, (name, taken) in enumerate(variants(self._ops(region), self._tactics(region))):
            part = self._part(region, name, taken)
            if part is None:
                continue
            place = folder / f"{key}-{number}"
            place.mkdir()
            try:
                made = self._bundle if self._backend.name == "segmented" else self._engine
                yield made(key, name, part, profile, place)
            except EngineError as error:
                self._progress.step(f"{name}: {error.what.splitlines()[0]}")

    def _ops(self, region: Region) -> tuple[str, ...]:
        nodes = self._model.graph.node
        return tuple(dict.fromkeys(nodes[index].op_type for index in region.group))

    def _tactics(self, region: Region) -> list[int]:
        """The ways of a plugin that is a group by itself, at the usual sizes."""
        if len(region.group) > 1:
            return []
        node = self._model.graph.node[region.group[0]]
        tensors = []
        for name in node.input:
            levels = self._range(name)
            if levels is None:
                return []
            tensors.append(abi.Tensor(self._types[name].element, levels.opt))
        library = abi.load(self._library)
        try:
            with abi.Plugin(library, node.op_type, attributes(node)) as plugin:
                return plugin.tactics(tensors)[:_TACTICS]
        except abi.PluginError:
            return []

    def _part(self, region: Region, name: str, taken: Sequence[str]) -> ModelProto | None:
        """The region as a model with these plugins of its group, and all around the group.

        None where it is to have TensorRT's own layers, and there are none for it.
        """
        ends = [
            [self._types[name].info(name) for name in names]
            for names in (region.inputs, region.outputs)
        ]
        part = extract(self._model, region.nodes, *ends)
        del part.functions[:]
        part.functions.extend(self._model.functions)
        places = [place for place, index in enumerate(region.nodes) if index in region.group]
        own = {part.graph.node[place].name for place in places}
        stayed = substitute(part, places, self._types) if name == NATIVE else dict.fromkeys(own)
        if len(stayed) == len(own) and name == NATIVE:
            return None
        for node in part.graph.node:
            if node.name in stayed and node.op_type not in taken:
                leave(part, node)
            elif node.name in stayed:
                choose_tactic(node, plugins_of(name).get(node.op_type, 0))
        used = functions_of(part, part.graph.node)
        del part.functions[:]
        part.functions.extend(used)
        return part

    def _bundle(
        self, key: str, name: str, part: ModelProto, profile: Profile, place: Path
    ) -> _Variant:
        path, library = place / "region.opfuse", self._library_of(part)
        parts = assemble.draft(part, self._base_dir, library, prefix=place.name)
        asked = assemble.requests(parts, profile, place, verbose=self._config.debug)

        def finish(built: Any) -> None:
            assemble.pack(parts, built, profile, None, path, embed=True)
            for file in (*parts.models, *(request.engine for request in asked)):
                if file is not None:
                    file.unlink()

        return _Variant(key, name, asked, finish, path)

    def _engine(
        self, key: str, name: str, part: ModelProto, profile: Profile, place: Path
    ) -> _Variant:
        model, path = self._base_dir / f"{place.name}.onnx", place / "region.engine"
        write_atomically(model, part.SerializeToString())
        asked = Request(model, path, dict(profile.ranges), self._library_of(part))
        return _Variant(key, name, asked, lambda built: model.unlink(), path)

    def _library_of(self, part: ModelProto) -> Path | None:
        return self._library if any(map(is_plugin, part.graph.node)) else None

    def _built(self, drafts: Sequence[_Variant]) -> list[Any]:
        """What the backend answers to each variant, or why it gave none, in words."""
        count = min(len(drafts), _PROCESSES, os.cpu_count() or 1)
        shares = [drafts[at::count] for at in range(count)]
        with ThreadPoolExecutor(max(count, 1)) as pool:
            answers = list(pool.map(self._share, shares))
        found: list[Any] = [None] * len(drafts)
        for at, answer in enumerate(answers):
            found[at::count] = answer
        return found

    def _share(self, drafts: Sequence[_Variant]) -> list[Any]:
        """Build in one process; where that dies, in one for each."""
        arguments = [item.argument for item in drafts]
        try:
            return list(self.child("opfuse.engine.batch:build", (self._backend.build, arguments)))
        except EngineError as error:
            if len(drafts) == 1:
                return [error.what.splitlines()[0]]
        return [answer for item in drafts for answer in self._share([item])]

    def _time(self, cases: Mapping[str, Case], settle: Settle) -> None:
        """Time all cases, in a few processes that prepare theirs at once."""
        count = max(1, min(len(cases), _TIMERS, (os.cpu_count() or 1) // 2))
        names = list(cases)
        shares = [{name: cases[name] for name in names[at::count]} for at in range(count)]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda share: self._time_share(share, settle), shares))

    def _time_share(self, share: Mapping[str, Case], settle: Settle) -> None:
        """Time in one process; a case at which it dies has no times, and the rest goes on."""
        left, at, said = dict(share), next(iter(share), ""), ""

        def take(event: child.Event) -> None:
            nonlocal at, said
            at, said = event.get("at", at), event.get("text", said)
            if "times" in event:
                paths, _ = left.pop(event["case"])
                why = "" if _are_told(event["times"], paths) else said or _SILENT
                with self._settling:
                    settle(event["case"], {} if why else event["times"], why)

        while left:
            why = _SILENT
            try:
                arguments = (dict(left), _ROUNDS, self._config.seed)
                self.child("opfuse.runtime.tuning:weigh", arguments, take)
            except EngineError as error:
                why = error.what.splitlines()[0]
                self._progress.step(why)
            if left:
                key = at if at in left else next(iter(left))
                del left[key]
                with self._settling:
                    settle(key, {}, why)

    def child(
        self,
        function: str,
        arguments: Sequence[Any],
        on_event: Callable[[child.Event], None] | None = None,
    ) -> Any:
        """Call a function in a process of its own, which has what the backend needs."""
        with scratch() as folder:
            return child.run(
                function,
                arguments,
                task="tuning",
                time_limit=self._config.time_limit,
                on_event=on_event,
                env=self._backend.environment(folder),
            )


def _are_told(times: Times, variants: Collection[str]) -> bool:
    """Whether TensorRT's way and one with plugins have run, where there is one, at every point."""
    having = {name for name in variants if plugins_of(name)}
    found = ({name for name, values in point.items() if values} for point in times.values())
    return all(LEAVE in names and (not having or having & names) for names in found)


def _finish(item: _Variant, built: Any) -> None:
    if not isinstance(built, str):
        item.finish(built)


def variants(
    ops: tuple[str, ...], tactics: Sequence[int] = ()
) -> list[tuple[str, tuple[str, ...]]]:
    """What is tried of a region: bodies, layers of TensorRT, all plugins, each alone, its ways."""
    found: list[tuple[str, tuple[str, ...]]] = [(LEAVE, ()), (NATIVE, ()), ("+".join(ops), ops)]
    found += [(op, (op,)) for op in ops if len(ops) > 1]
    return found + [(f"{op}@{tactic}", (op,)) for op in ops for tactic in tactics]


def _points(ranges: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The distinct shapes of the inputs at the levels of the profile, the usual one first."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for level in ("opt", *(level for level in LEVELS if level != "opt")):
        shapes = {name: getattr(levels, level) for name, levels in ranges.items()}
        if shapes not in found.values():
            found[level] = shapes
    return found
