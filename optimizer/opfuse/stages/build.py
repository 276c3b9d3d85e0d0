"""Turns a lowered model into an engine file, in a child process, all or nothing."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from opfuse import child
from opfuse.cache import Cache
from opfuse.config import Config
from opfuse.engine import assemble, kept
from opfuse.engine.backend import Backend, EngineInfo, Request, ShapesRefused
from opfuse.engine.profile import LONGEST, USUAL, Profile, resolve
from opfuse.engine.select import select
from opfuse.errors import InputError
from opfuse.files import Pending, check_output, scratch, translated, write_atomically
from opfuse.progress import Progress


def require(config: Config) -> None:
    """Refuse, before any work, a backend that this machine has not got, and a bad cache.

    Raises:
        InputError: The cache is no folder.
        MissingComponent: The backend cannot be used on this machine.
    """
    select(config.backend)
    kept.open_cache(config)


def build(
    model: ModelProto,
    base_dir: Path,
    config: Config,
    progress: Progress,
    plugin_library: Path | None = None,
    accept: Callable[[EngineInfo], None] | None = None,
) -> EngineInfo:
    """Build the engine and write it to ``config.output``.

    Args:
        model: What stages/lower made; its weights are inline, or in files of ``base_dir`` that
            opfuse wrote itself: TensorRT's parser opens them, and follows links when it does.
        base_dir: A private folder.
        config: Backend, shapes, output, time limit, and what to do with the plugin library.
        progress: Told about TensorRT's phases.
        plugin_library: The library to load; None where the model has no plugin node.
        accept: Raises where the engine is not what was asked for; nothing is written then.

    Raises:
        InputError: The shapes do not fit the model, or the output cannot be written.
        MissingComponent: The backend cannot be used on this machine.
        EngineError: TensorRT refused the model or died on it.
        TimeLimit: The build took longer than the limit.
    """
    if config.output is None:
        raise InputError("no engine file is named", "give -o OUT.engine")
    check_output(config.output)
    choice = select(config.backend)
    cache = kept.open_cache(config)
    parts = (model, base_dir, choice.backend, config, progress, plugin_library)
    if choice.backend.name == "segmented":
        accept = None  # a bundle lists no layers to judge
        make = partial(_bundle, *parts)
    else:
        make = partial(_engine, *parts, accept, cache)
    key = None
    if cache is not None:
        key = kept.engine_key(model, base_dir, config, choice.backend, plugin_library)
    info = kept.build(cache, key, config, make, accept, progress)
    notes = [*info.notes, *_without_cache(config, choice.backend)]
    if cache is not None and key is None:
        notes.append("the cache was not used: the version of TensorRT is not known")
    if info.plugin_layers and plugin_library is not None and not config.embed_plugins:
        notes.append(_publish_beside(plugin_library, config.output))
    return replace(info, why=choice.why, path=str(config.output), notes=tuple(notes))


def _engine(
    model: ModelProto,
    base_dir: Path,
    backend: Backend,
    config: Config,
    progress: Progress,
    plugin_library: Path | None,
    accept: Callable[[EngineInfo], None] | None,
    cache: Cache | None,
) -> EngineInfo:
    """Build one engine in a child process, and write it if it is accepted."""
    output = config.output
    assert output is not None
    with scratch() as folder:
        timings = _own_timings(config, backend, cache, folder)
        request = replace(
            _request(model, base_dir, config, plugin_library),
            engine=folder / "out.engine",
            timing_cache=timings,
        )
        info = _within_limits(model, config, _single(backend, request, config, progress))
        if accept is not None:
            accept(info)
        if config.timing_cache is not None and timings is not None:
            _publish(timings, config.timing_cache)
        elif cache is not None and timings is not None:
            kept.keep_timings(cache, backend, timings)
        _publish(folder / "out.engine", output)
    return info


def check(
    model: ModelProto,
    base_dir: Path,
    config: Config,
    progress: Progress,
    plugin_library: Path | None = None,
) -> EngineInfo:
    """Only let TensorRT import the model, or its segments; arguments and errors as for `build`."""
    choice = select(config.backend)
    if choice.backend.name == "segmented":
        parts = _cut(model, base_dir, config, plugin_library)

        def attempt(profile: Profile) -> EngineInfo:
            made = assemble.requests(parts, profile, None, verbose=config.debug)
            built = _in_child(choice.backend, made, config, progress)
            return assemble.summary(parts, built, profile)

        info = _within_limits(model, config, attempt)
    else:
        request = _request(model, base_dir, config, plugin_library)
        info = _within_limits(model, config, _single(choice.backend, request, config, progress))
    return replace(info, why=choice.why, path="")


def _cut(
    model: ModelProto, base_dir: Path, config: Config, plugin_library: Path | None
) -> assemble.Draft:
    around = config.lower != "auto"  # which decides for the faster, as far as that was measured
    return assemble.draft(model, base_dir, plugin_library, around_attention=around)


def _bundle(
    model: ModelProto,
    base_dir: Path,
    backend: Backend,
    config: Config,
    progress: Progress,
    plugin_library: Path | None,
) -> EngineInfo:
    """Build the segments in one child process, and write them as one file."""
    output = config.output
    assert output is not None
    parts = _cut(model, base_dir, config, plugin_library)

    def attempt(profile: Profile) -> EngineInfo:
        with scratch() as folder:
            made = assemble.requests(parts, profile, folder, verbose=config.debug)
            built = _in_child(backend, made, config, progress)
            embed = config.embed_plugins
            return assemble.pack(parts, built, profile, base_dir, output, embed=embed)

    return _within_limits(model, config, attempt)


def _request(
    model: ModelProto, base_dir: Path, config: Config, plugin_library: Path | None
) -> Request:
    path = base_dir / "lowered.onnx"
    write_atomically(path, model.SerializeToString())
    return Request(
        model=path,
        engine=None,
        ranges={},
        plugin_library=plugin_library,
        embed_plugins=config.embed_plugins,
        verbose=config.debug,
    )


def _single(
    backend: Backend, request: Request, config: Config, progress: Progress
) -> Callable[[Profile], EngineInfo]:
    """What builds one engine under a profile."""

    def attempt(profile: Profile) -> EngineInfo:
        info: EngineInfo = _in_child(
            backend, replace(request, ranges=profile.ranges), config, progress
        )
        return info

    return attempt


def _within_limits(
    model: ModelProto, config: Config, attempt: Callable[[Profile], EngineInfo]
) -> EngineInfo:
    """Build, with shorter assumed sequences where the model turns out to be limited.

    A table of 64 positions only shows when TensorRT compares it with the profile.
    """
    longest = LONGEST
    given = (config.min_shapes, config.opt_shapes, config.max_shapes)
    while True:
        profile = resolve(model.graph, given, longest)
        try:
            info = attempt(profile)
        except ShapesRefused as refusal:
            shorter = _shorter(refusal.what, longest)
            if shorter < 1 or resolve(model.graph, given, shorter).ranges == profile.ranges:
                raise
            longest = shorter
        else:
            return replace(info, notes=(*profile.assumed, *info.notes))


def _shorter(refusal: str, longest: int) -> int:
    """The limit that the message names beside a size that was tried, else half."""
    for pair in re.findall(r"(\d+) != (\d+)", refusal):
        small, large = sorted(map(int, pair))
        if 1 < small < longest and large in (longest, min(USUAL, longest)):
            return small
    return longest // 2


def _in_child(
    backend: Backend, request: Request | list[Request], config: Config, progress: Progress
) -> Any:
    with scratch() as folder:
        return child.run(
            backend.build,
            [request],
            task=backend.name,
            time_limit=config.time_limit,
            on_event=progress.event,
            on_output=_show if config.debug else None,
            env=backend.environment(folder),
        )


def _show(text: str) -> None:
    with suppress(OSError):  # nobody reads it: no reason to stop
        sys.stderr.write(text)


def _own_timings(
    config: Config, backend: Backend, cache: Cache | None, folder: Path
) -> Path | None:
    """A copy of the timing cache for the child to change, at a path of our own."""
    own = folder / "timing.cache"
    if not backend.uses_timing_cache or (config.timing_cache is None and cache is None):
        return None
    if config.timing_cache is None:
        assert cache is not None
        kept.fetch_timings(cache, backend, own)
    elif config.timing_cache.exists():
        try:
            shutil.copyfile(config.timing_cache, own)
        except OSError as error:
            raise InputError(f"timing cache {config.timing_cache}: {error.strerror}") from None
    return own


def _without_cache(config: Config, backend: Backend) -> list[str]:
    if config.timing_cache is None or backend.uses_timing_cache:
        return []
    return [f"{backend.name} has no use for a timing cache: the option was ignored"]


def _publish_beside(plugin_library: Path, output: Path) -> str:
    beside = output.parent / plugin_library.name
    if not (beside.exists() and beside.samefile(plugin_library)):
        _publish(plugin_library, beside)
    return f"the engine needs {beside.name}, which stands beside it"


def _publish(source: Path, target: Path) -> None:
    """Put a finished file in its place, whole."""
    with source.open("rb") as whole, Pending(target.parent, source.stat().st_size) as pending:
        with translated(target, pending.needed):
            shutil.copyfileobj(whole, pending.file, 1 << 20)
        pending.publish(target)
