"""Times engines on this machine's GPU, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opfuse import child
from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.errors import InputError, MissingComponent
from opfuse.progress import Progress

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


def bench(paths: Sequence[Path], config: Config, progress: Progress) -> Bench:
    """Time every engine of ``paths`` on inputs of ``config.opt_shapes``.

    Raises:
        InputError: One of the files is no engine.
        MissingComponent: There is no GPU, or not what the engine needs.
        EngineError: TensorRT refuses one, or dies on it.
        TimeLimit: ``config.time_limit`` has passed.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no engine {path}", "build one with opfuse build")
    require_gpu()
    return Bench(tuple(_measured(path, config, progress) for path in paths))


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


def _measured(path: Path, config: Config, progress: Progress) -> Measurement:
    result: Measurement = child.run(
        "opfuse.runtime.timing:measure",
        (
            path,
            dict(config.opt_shapes),
            config.iterations,
            config.warm_up,
            config.seed,
            config.plugin_library,
        ),
        task=f"running {path.name}",
        time_limit=config.time_limit,
        on_event=progress.event,
    )
    return result
