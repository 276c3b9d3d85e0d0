"""The options of one run: validated once, frozen, and the only thing that is passed down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import SupportsIndex

from opfuse.errors import InputError

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "segmented")
PRECISIONS = ("keep", "fp16", "bf16")
LOWERINGS = ("auto", "leave", "native", "plugin")
GPUS = ("A100", "H100", "H200", "B200", "L4", "RTX4090", "RTX5090")

_PATHS = ("model", "output", "timing_cache", "plugin_library", "cache", "lock", "bench", "engine")
_LARGEST = 2**31 - 1  # TensorRT's profiles take no larger size

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Config:
    """What to do with one model.

    Args:
        model: The ONNX file to read.
        output: The fused ONNX file or the engine to write; None writes nothing.
        backend: Which TensorRT builds the engine; "auto" takes the first that is usable.
        precision: "keep" leaves every tensor in the type that the model gives it; "fp16" and
            "bf16" convert what may compute in that type.
        io_precision: The type of floating-point inputs and outputs; "keep" leaves theirs.
        calibrate: .npz files of inputs on which activations are measured for the conversion.
        lower: What a fusion becomes in the engine; "auto" decides for each candidate.
        prove: Compare every distinct fusion and the whole model with the original.
        min_shapes: Smallest shape of each dynamic input, by input name.
        opt_shapes: The shape that the engine is tuned for.
        max_shapes: Largest shape of each dynamic input.
        timing_cache: File in which TensorRT keeps kernel timings between builds.
        cache: Folder in which built engines are kept, and taken from where the same is built
            again; None takes the one that $OPFUSE_CACHE names, or none.
        use_cache: False builds without any cache.
        cache_size: Bytes that the cache may take.
        reports: Files to write the report to; the suffix gives the format.
        time_limit: Seconds of wall time that the run may take; None is no limit.
        plugin_library: The plugin library to load instead of the one in the package.
        embed_plugins: Put the plugin library into the engine file.
        layers: Compare what every step of a bundle writes, too.
        bisect: Where an engine is wrong, find the first operator at which it is.
        rtol: Largest relative error that passes; None takes the default of the data type.
        seed: Seed of the random inputs of the proof.
        iterations: How many runs `bench` times.
        warm_up: How many runs come before those.
        gpu: The GPU that savings are told for; a name of ``GPUS``.
        dry_run: Do all but write: neither the output nor a report.
        lock: The file that `check` holds the model against, and that keeps what was tuned.
        tune: Time plugins against TensorRT on this GPU where the lock has no verdict yet.
        update: Write that file anew.
        bench: A report of `opfuse bench` in JSON, for the limit of the time.
        engine: The engine that was built, for the limits of its size and its time.
        tp: How many ranks `shard` cuts the model for.
        shard_vocab: Share out the embedding and the head too.
        debug: Show tracebacks, and keep what the child processes print.

    Raises:
        InputError: An option has a value that it cannot have.
    """

    model: Path
    output: Path | None = None
    backend: str = "auto"
    precision: str = "keep"
    io_precision: str = "keep"
    calibrate: tuple[Path, ...] = ()
    lower: str = "auto"
    prove: bool = True
    min_shapes: Shapes = field(default_factory=dict)
    opt_shapes: Shapes = field(default_factory=dict)
    max_shapes: Shapes = field(default_factory=dict)
    timing_cache: Path | None = None
    cache: Path | None = None
    use_cache: bool = True
    cache_size: int = 10 << 30
    reports: tuple[Path, ...] = ()
    time_limit: float | None = None
    plugin_library: Path | None = None
    embed_plugins: bool = True
    layers: bool = False
    bisect: bool = False
    rtol: float | None = None
    seed: int = 0
    iterations: int = 100
    warm_up: int = 20
    gpu: str = "H100"
    dry_run: bool = False
    lock: Path = Path("opfuse.lock")
    tune: bool = False
    update: bool = False
    bench: Path | None = None
    engine: Path | None = None
    tp: int = 2
    shard_vocab: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        for name in _PATHS:
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))
        for name in ("reports", "calibrate"):
            object.__setattr__(self, name, tuple(Path(path) for path in getattr(self, name)))
        _one_of("backend", self.backend, BACKENDS)
        _one_of("lower", self.lower, LOWERINGS)
        _one_of("gpu", self.gpu, GPUS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("io_precision", self.io_precision, PRECISIONS)
        self._check_conversion()
        for level in ("min_shapes", "opt_shapes", "max_shapes"):
            _check_shapes(level, getattr(self, level))
        _check_positive("time_limit", self.time_limit)
        _check_positive("rtol", self.rtol)
        _check_positive("cache_size", self.cache_size)
        _check_positive("iterations", self.iterations)
        _check_positive("warm_up", self.warm_up)
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative", "give 0 or more")

    def _check_conversion(self) -> None:
        """Refuse what goes with a conversion where none is asked for."""
        for name, option in (("io_precision", "--io-precision"), ("calibrate", "--calibrate")):
            if self.precision == "keep" and getattr(self, name) not in ("keep", ()):
                raise InputError(
                    f"{name} is given, and no precision to convert to",
                    f"give --precision fp16 or bf16 with {option}",
                )
        if self.io_precision not in ("keep", self.precision):
            raise InputError(
                f"io_precision {self.io_precision} is another type than precision {self.precision}",
                "take keep, or the same type",
            )

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """The names that the library API takes as keyword arguments."""
        return frozenset(item.name for item in fields(cls)) - {"model", "output"}


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{option} {value!r} is not known", f"use one of {', '.join(choices)}")


def _check_shapes(option: str, shapes: object) -> None:
    """Refuse what is no shape by the name of an input, and sizes that TensorRT has no room for."""
    for name, shape in shapes.items() if isinstance(shapes, Mapping) else [("", shapes)]:
        sizes = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else [""]
        if not all(map(_is_size, sizes)):
            raise InputError(
                f"{option} of {name!r} are {shape!r}" if name else f"{option} are {shapes!r}",
                f"give the sizes of each input, whole numbers up to {_LARGEST}",
            )


def _is_size(value: object) -> bool:
    return isinstance(value, SupportsIndex) and 0 <= int(value) <= _LARGEST


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{option} {value} is no finite number above zero", "give one, or none")
