"""Runs two models on the same inputs and compares what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opfuse import child
from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.engine.profile import LEVELS
from opfuse.errors import InputError, MissingComponent
from opfuse.files import scratch
from opfuse.graph.collectives import refuse_ranks
from opfuse.numerics.handover import Handover
from opfuse.numerics.shares import Parts
from opfuse.numerics.whole import Comparison
from opfuse.runtime import bundle
from opfuse.runtime.origin import report_of
from opfuse.sharding.result import refuse_folders
from opfuse.stages.load import load, protect

__all__ = ["Comparison", "verify"]

_ENGINES = (".engine", ".plan", ".trt", ".opfuse")
_MODEL_CALL = "opfuse.numerics.whole:compare_models"
_ENGINE_CALL = "opfuse.numerics.engine:compare_engine"


def verify(a: Path, b: Path, config: Config) -> Comparison:
    """Compare two ONNX models, or an engine and a model, on inputs made from the model ``a``.

    Inputs and outputs pair up by name where the names agree, else by position. The inputs depend
    on ``config.seed`` alone, their sizes on ``config.opt_shapes`` where it names them.

    Returns:
        The difference of every output; ``passed`` tells whether all are within the tolerance.

    Raises:
        InputError: One of the files is no ONNX model, or ``a`` does not run; or both are engines.
        MissingComponent: An engine is to be run, and there is no GPU, or not what it needs.
        EngineError: One of them kills the process that runs it.
        TimeLimit: ``config.time_limit`` has passed.
    """
    refuse_folders((a, b))
    engines = [path for path in (a, b) if _is_engine(path)]
    if len(engines) == 2:
        raise InputError(
            f"{a} and {b} are both engines", "compare each with the ONNX model it was built from"
        )
    if (config.layers or config.bisect) and not engines:
        option = "--layers" if config.layers else "--bisect"
        raise InputError(f"{option} is for an engine, and both are models", "leave it out")
    model = b if engines == [a] else a
    first = load(model)
    refuse_ranks(first.proto)
    protect(first, config.reports)
    with scratch() as folder:
        handover = Handover(folder)
        subject = handover.subject(first.proto, first.base_dir)
        call: str = _ENGINE_CALL
        arguments: tuple[object, ...] = (*engines, subject)
        if not engines:
            second = load(b)
            refuse_ranks(second.proto)
            protect(second, config.reports)
            other = handover.subject(second.proto, second.base_dir)
            call, arguments = _MODEL_CALL, (subject, other)
            del second
        del first
        extra = (config.plugin_library, config.layers) if engines else ()
        comparison: Comparison = child.run(
            call,
            (*arguments, config.seed, config.rtol, dict(config.opt_shapes), *extra),
            task=f"running {a.name} and {b.name}",
            time_limit=config.time_limit,
        )
    if comparison.not_run:
        raise InputError(
            f"{model} does not run, or gives nothing to compare: {comparison.not_run}", _fix(config)
        )
    return comparison


def verify_ranks(bundle: Path, parts: Parts, model: Path, config: Config) -> Comparison:
    """Compare all ranks with the model that was sharded; each of them calls this.

    Args:
        bundle: This rank's.
        parts: The inputs and outputs that ranks have parts of.
        model: The ONNX model.
        config: For the seed, the tolerance, the shapes, and the limits.

    Raises:
        InputError: The model is none, or does not run.
        EngineError: A rank is lost, or dies.
    """
    source = load(model)
    refuse_ranks(source.proto)
    protect(source, config.reports)
    with scratch() as folder:
        subject = Handover(folder).subject(source.proto, source.base_dir)
        del source
        comparison: Comparison = child.run(
            "opfuse.numerics.together:compare_rank",
            (
                *(bundle, subject, parts, config.seed, config.rtol, dict(config.opt_shapes)),
                config.plugin_library,
            ),
            task=f"running {bundle.name} and {model.name}",
            time_limit=config.time_limit,
        )
    if comparison.not_run:
        raise InputError(
            f"{model} does not run, or gives nothing to compare: {comparison.not_run}", _fix(config)
        )
    return comparison


def options_of(engine: Path) -> dict[str, Any]:
    """The options that the engine was built with, as far as the report beside it tells them.

    A bundle tells its shapes itself; where those of an engine are told nowhere, there are none.
    """
    report = report_of(engine, None) or {}
    converted, asked = report.get("precision") or {}, report.get("asked") or {}
    found = {name: converted[name] for name in ("precision", "io_precision") if name in converted}
    if "lower" in asked:
        found |= {"lower": asked["lower"], "calibrate": tuple(map(Path, asked["calibrate"]))}
    ports = (report.get("engine") or {}).get("io", ())
    ranges = bundle.profile_in(engine) or {p["name"]: p["range"] for p in ports if p["range"]}
    for at, level in enumerate(LEVELS if ranges else ()):
        found[f"{level}_shapes"] = {name: tuple(levels[at]) for name, levels in ranges.items()}
    return found


def _is_engine(path: Path) -> bool:
    """Whether this is an engine, and it can be run here.

    Raises:
        MissingComponent: It is one, and there is no GPU.
    """
    if path.suffix not in _ENGINES:
        return False
    if path.is_file() and (reason := gpu.absent()):
        raise MissingComponent(
            f"{path} is an engine and runs on a GPU: {reason}",
            "compare the fused .onnx with the original, which needs none",
        )
    return True


def _fix(config: Config) -> str:
    return "" if config.opt_shapes else "give the sizes of its inputs with --optShapes"
