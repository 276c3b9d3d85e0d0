"""Compares all ranks of a sharded model, run in step on the CPU, with the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opfuse import child
from opfuse.config import Config
from opfuse.errors import CheckFailed, EngineError
from opfuse.files import scratch
from opfuse.numerics.handover import Handover
from opfuse.numerics.whole import Comparison, Subject
from opfuse.progress import Progress
from opfuse.stages.load import Source


def prove_ranks(
    source: Source,
    files: Sequence[Path],
    parts: Mapping[str, tuple[int, tuple[tuple[int, ...], ...]]],
    config: Config,
    progress: Progress,
) -> Comparison:
    """Run the original and the files of the ranks on the same inputs, and compare.

    Args:
        source: The original.
        files: The file of each rank; they are read as they are delivered.
        parts: The inputs and outputs that the ranks have parts of.
        config: For the seed, the tolerance, the shapes, and the time limit.
        progress: Told what runs.

    Raises:
        CheckFailed: They differ.
        EngineError: The process cannot start, or dies.
        TimeLimit: ``config.time_limit`` has passed.
    """
    last: Mapping[str, Any] = {}

    def note(event: Mapping[str, Any]) -> None:
        nonlocal last
        last = event
        progress.step(str(event["text"]), 0, 0)

    with scratch() as folder:
        original = Handover(folder).subject(source.proto, source.base_dir)
        ranks = [Subject(path, path.parent.resolve(), {}) for path in files]
        shapes = dict(config.opt_shapes)
        try:
            result: Comparison = child.run(
                "opfuse.numerics.ranks:compare_ranks",
                (original, ranks, parts, config.seed, config.rtol, shapes),
                task="the proof",
                time_limit=config.time_limit,
                on_event=note,
            )
        except EngineError as death:
            if last.get("model") != "fused":
                raise
            result = Comparison({}, 0.0, refused=death.what)
    if not result.passed:
        error = result.refused or f"relative error {result.max_rel_err:.1e}"
        raise CheckFailed(
            f"{source.path}: the {len(files)} ranks do not compute what the model does: {error}",
            "report it with the model; --no-prove writes the result all the same",
        )
    return result
