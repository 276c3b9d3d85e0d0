"""The commands as functions: what ``import opfuse`` offers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse import checking, pipeline, splitting
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.stages.report import Report

if TYPE_CHECKING:
    from opfuse.gate.result import Check
    from opfuse.runtime.library import LibraryInfo
    from opfuse.splitting import Shards
    from opfuse.stages.bench import Bench
    from opfuse.stages.package import Packaged
    from opfuse.stages.verify import Comparison

AnyPath = str | os.PathLike[str]


def build(model: AnyPath, output: AnyPath, **options: Any) -> Report:
    """Fuses a model, proves it, and writes a TensorRT engine.

    Args:
        model: The ONNX file.
        output: The engine file.
        **options: Fields of :class:`opfuse.Config`, such as ``backend="tensorrt-rtx"``,
            ``max_shapes={"input_ids": (8, 512)}``, or ``prove=False``.

    Raises:
        OpfuseError: Any foreseen failure; ``output`` is then as it was.
    """
    return pipeline.run(_config(model, output, options), "build")


def fuse(model: AnyPath, output: AnyPath, **options: Any) -> Report:
    """Fuses a model, proves it, and writes it as ONNX. Takes and raises what `build` does."""
    return pipeline.run(_config(model, output, options), "fuse")


def explain(model: AnyPath, **options: Any) -> Report:
    """Finds the fusions of a model and writes nothing.

    Raises:
        OpfuseError: Any foreseen failure.
    """
    return pipeline.run(_config(model, None, options), "explain")


def verify(a: AnyPath, b: AnyPath, **options: Any) -> Comparison:
    """Runs two models, or an engine and a model, on the same inputs and compares the outputs.

    Raises:
        OpfuseError: One of them cannot be run. Different numbers are a result, not an error.
    """
    return pipeline.verify(Path(a), Path(b), _config(a, None, options))


def check(model: AnyPath, lock: AnyPath = "opfuse.lock", **options: Any) -> Check:
    """Holds a model against its lock; ``update=True`` writes the lock.

    Args:
        model: The ONNX file.
        lock: The lock, which is committed with the model.
        **options: Fields of :class:`opfuse.Config`; those that are not given are the lock's.

    Raises:
        OpfuseError: The check cannot be made. A failed expectation is a result, not an error.
    """
    _check_names(options)
    return checking.check(Path(model), {"lock": Path(lock), **options})


def bench(engine: AnyPath, *others: AnyPath, **options: Any) -> Bench:
    """Times an engine on this GPU, and others beside it; ONNX models are built as they are.

    Raises:
        OpfuseError: One of them cannot be run.
    """
    config = _config(engine, None, options)
    return pipeline.bench(Path(engine), [Path(other) for other in others], config)


def package(
    engine: AnyPath,
    repository: AnyPath,
    *,
    name: str | None = None,
    report: AnyPath | None = None,
    max_batch: int | None = None,
    plugin_library: AnyPath | None = None,
) -> Packaged:
    """Writes an engine or a bundle into a Triton model repository.

    Args:
        engine: The file that `build` wrote.
        repository: The folder of models, which gets one folder more.
        name: The model's name; None takes that of the file.
        report: The JSON report of the build; None takes the one beside the engine, if any.
        max_batch: The largest batch that Triton may join requests to; None decides.
        plugin_library: The library that the engine was built with; None takes the package's.

    Raises:
        OpfuseError: Any foreseen failure; the repository is then as it was.
    """
    named, library = (None if p is None else Path(p) for p in (report, plugin_library))
    return pipeline.package(
        Path(engine),
        Path(repository),
        name=name,
        report=named,
        max_batch=max_batch,
        plugin_library=library,
    )


def shard(model: AnyPath, output: AnyPath, tp: int, **options: Any) -> Shards:
    """Cuts a model for several GPUs, and proves that together they compute the same.

    Args:
        model: The ONNX file.
        output: The folder to write: a file for each rank, and the plan.
        tp: The number of ranks.
        **options: Fields of :class:`opfuse.Config`, such as ``shard_vocab=True``.

    Raises:
        OpfuseError: Any foreseen failure; ``output`` is then as it was.
    """
    return splitting.shard(_config(model, output, {"tp": tp, **options}))


def plugins(library: AnyPath | None = None) -> LibraryInfo:
    """Describes a plugin library, by default the one in the package.

    Raises:
        MissingComponent: There is no library.
    """
    return pipeline.plugins(None if library is None else Path(library))


def _config(model: AnyPath, output: AnyPath | None, options: dict[str, Any]) -> Config:
    _check_names(options)
    return Config(Path(model), None if output is None else Path(output), **options)


def _check_names(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - Config.option_names())
    if unknown:
        known = ", ".join(sorted(Config.option_names()))
        raise InputError(f"unknown option {', '.join(unknown)}", f"the options are {known}")
