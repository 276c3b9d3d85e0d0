"""Times engines on this machine's GPU, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from opfuse import child
from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.errors import InputError, MissingComponent
from opfuse.files import file_hash, is_module
from opfuse.graph.filekind import refuse_no_engine
from opfuse.progress import Progress
from opfuse.sharding.result import refuse_folders

if TYPE_CHECKING:
    from opfuse.runtime.timing import Measurement


@dataclass(frozen=True)
class Bench:
    """The measurements in the order that was asked for; others are judged by the first."""

    engines: tuple[Measurement, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The median of each by CUDA graph over that of the first."""
        first = self.engines[0].graph.median_us
        return tuple(item.graph.median_us / first for item in self.engines)

    def named(self, names: Sequence[str]) -> Bench:
        """The same under other names; an empty one keeps the path of the engine."""
        pairs = zip(self.engines, names, strict=True)
        return Bench(tuple(replace(item, path=name or item.path) for item, name in pairs))


def bench(paths: Sequence[Path], config: Config, progress: Progress) -> Bench:
    """Time every engine of ``paths`` on inputs of ``config.opt_shapes``.

    ``FILE.py:NAME`` after the first engine is a torch module, which gets the same inputs.

    Raises:
        InputError: One of the files is no engine, or a function does not make a module.
        MissingComponent: There is no GPU, or not what the engine needs.
        EngineError: TensorRT refuses one, or dies on it.
        TimeLimit: ``config.time_limit`` has passed.
    """
    refuse_folders(paths)
    first, *others = paths
    for path in paths:
        if not path.is_file() and (path is first or not is_module(path)):
            raise InputError(f"there is no engine {path}", "build one with opfuse build")
        if not is_module(path):
            refuse_no_engine(path)
    require_gpu()
    found = [measured(first, config, progress)]
    for path in others:
        if is_module(path):
            found.append(_module(path, found[0], config, progress))
        else:
            found.append(measured(path, config, progress))
    return Bench(tuple(found))


def require_gpu() -> None:
    """Refuse a machine that no engine runs on, before anything is built for it.

    Raises:
        MissingComponent: There is no GPU.
    """
    if reason := gpu.absent():
        raise MissingComponent(
            f"opfuse bench runs engines on a GPU: {reason}",
            "run it on a machine with an NVIDIA GPU",
        )


def _module(path: Path, like: Measurement, config: Config, progress: Progress) -> Measurement:
    """A torch module on the inputs of an engine."""
    limits = (config.iterations, config.warm_up, config.seed)
    result: Measurement = child.run(
        "opfuse.runtime.torch_module:measure",
        (str(path), like.shapes, like.types, *limits),
        task=f"running {path.name}",
        time_limit=config.time_limit,
        on_event=progress.event,
    )
    return result


def measured(path: Path, config: Config, progress: Progress, device: int = 0) -> Measurement:
    """Time one engine on the GPU of this number; all ranks of a sharded model call it together.

    Raises:
        OpfuseError: As `bench`; of a rank's bundle also where another rank is lost.
    """
    result: Measurement = child.run(
        "opfuse.runtime.timing:measure",
        (
            path,
            dict(config.opt_shapes),
            config.iterations,
            config.warm_up,
            config.seed,
            config.plugin_library,
            device,
        ),
        task=f"running {path.name}",
        time_limit=config.time_limit,
        on_event=progress.event,
    )
    return replace(result, sha256=file_hash(path))
