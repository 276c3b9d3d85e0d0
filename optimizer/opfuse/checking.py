"""The check against opfuse.lock: the first stages of the pipeline, and then the comparison."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse.config import Config
from opfuse.errors import CheckFailed, InputError
from opfuse.pipeline import (
    check_outputs,
    convert_model,
    explain_model,
    fuse_and_prove,
    fuse_model,
)
from opfuse.progress import Progress
from opfuse.stages.report import SUFFIXES, check_suffix

if TYPE_CHECKING:
    from opfuse.explanation.result import Anchor
    from opfuse.gate.result import Check
    from opfuse.stages.check import Found
    from opfuse.stages.load import Source


def check(model: Path, given: Mapping[str, Any], progress: Progress | None = None) -> Check:
    """Holds a model against its lock, or writes the lock; ``given`` goes before its options."""
    from opfuse.graph.collectives import refuse_ranks
    from opfuse.stages import check as gate
    from opfuse.stages.check_report import write
    from opfuse.stages.load import load, protect
    from opfuse.stages.shapes import check_shapes

    progress = progress or Progress()
    config, locked = gate.configured(model, given)
    outputs = [*config.reports, *([config.lock] if config.update else [])]
    check_outputs(outputs)
    _spare(config.reports, [config.lock, config.bench, config.engine])
    for path in config.reports:
        check_suffix(path, SUFFIXES)
    with progress.stage("load"):
        source = load(config.model)
        refuse_ranks(source.proto)
        check_shapes(source, config)
        gate.refuse_other_model(source, locked, config)
        protect(source, outputs)
    found = _found(source, config, progress)
    anchors, measure = partial(_anchors, source, config), partial(_measured, config, progress)
    with progress.stage("check"):
        result = gate.check(found, locked, config, progress, anchors, measure)
    result = replace(result, timings=dict(progress.timings))
    for path in config.reports:
        write(result, path)
    return result


def _spare(reports: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuses reports that would replace what the check reads."""
    own = {os.path.realpath(path): path for path in inputs if path is not None}
    for report in reports:
        if (path := own.get(os.path.realpath(report))) is not None:
            raise InputError(f"report {report} is {path} itself", "choose another name")


def _found(source: Source, config: Config, progress: Progress) -> Found:
    """What a check asks of a model: fused, proven, converted; or that it could not be.

    Raises:
        CheckFailed: It could not, and a lock is to be written.
    """
    from opfuse.stages.check import Found

    precision = None
    try:
        if config.prove:
            fused, model, proof = fuse_and_prove(source, config, progress)
        else:
            (fused, model), proof = fuse_model(source, {}, progress), None
        if config.precision != "keep":
            model, precision = convert_model(source, fused, model, config, progress)
    except CheckFailed as failure:
        if config.update:
            raise
        return Found(source, *fuse_model(source, {}, progress), None, None, failure.what)
    return Found(source, fused, model, proof, precision)


def _anchors(source: Source, config: Config) -> tuple[Anchor, ...]:
    """Of the model fused again: a conversion changes the graph that anchors are found in."""
    silent = Progress()
    fused, _ = fuse_model(source, {}, silent)
    return explain_model(source, fused, config, silent).anchors


def _measured(config: Config, progress: Progress, engine: Path) -> Any:
    from opfuse.stages.bench import bench as measure

    return measure([engine], config, progress).engines[0]
