"""Runs two models on the same inputs and compares what they compute."""

from __future__ import annotations

from pathlib import Path

from opfuse import child
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.files import scratch
from opfuse.numerics.handover import Handover
from opfuse.numerics.whole import Comparison
from opfuse.stages.load import load, protect

__all__ = ["Comparison", "verify"]

_ENGINES = (".engine", ".plan", ".trt", ".opfuse")


def verify(a: Path, b: Path, config: Config) -> Comparison:
    """Compare two ONNX models on inputs made from the graph of ``a``.

    Inputs and outputs pair up by name where the names agree, else by position. The inputs depend
    on ``config.seed`` alone, their sizes on ``config.opt_shapes`` where it names them.

    Returns:
        The difference of every output; ``passed`` tells whether all are within the tolerance.

    Raises:
        InputError: One of the files is no ONNX model, or ``a`` does not run.
        EngineError: One of them kills the process that runs it.
        TimeLimit: ``config.time_limit`` has passed.
    """
    for path in (a, b):
        if path.suffix in _ENGINES:
            raise InputError(
                f"{path} is an engine; only ONNX models can be compared in this release",
                "compare the fused .onnx with the original",
            )
    first, second = load(a), load(b)
    for one in (first, second):
        protect(one, config.reports, model_too=True)
    with scratch() as folder:
        handover = Handover(folder)
        subjects = [handover.subject(one.proto, one.base_dir) for one in (first, second)]
        del first, second
        comparison: Comparison = child.run(
            "opfuse.numerics.whole:compare_models",
            (*subjects, config.seed, config.rtol, dict(config.opt_shapes)),
            task=f"running {a.name} and {b.name}",
            time_limit=config.time_limit,
        )
    if comparison.not_run:
        raise InputError(f"{a} does not run: {comparison.not_run}", _fix(config))
    return comparison


def _fix(config: Config) -> str:
    return "" if config.opt_shapes else "give the sizes of its inputs with --optShapes"
