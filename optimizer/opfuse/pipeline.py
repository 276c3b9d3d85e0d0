"""The stages in order: load, normalise, fuse, prove, lower and build or save, report."""

from __future__ import annotations

from opfuse.config import Config
from opfuse.files import check_output
from opfuse.profiles import check_shapes
from opfuse.progress import Progress
from opfuse.stages.report import Report


def run(config: Config, goal: str, progress: Progress | None = None) -> Report:
    """Takes one model as far as the goal says.

    Args:
        config: The options; ``config.output`` is where "fuse" and "build" write.
        goal: "explain" writes nothing, "fuse" the fused ONNX file, "build" the engine.
        progress: Told about each stage.

    Raises:
        OpfuseError: Any foreseen failure; nothing was written.
    """
    progress = progress or Progress()
    for path in (config.output, *config.reports):
        if path is not None:
            check_output(path)
    with progress.stage("load"):
        from opfuse.stages.load import load

        source = load(config.model)
        check_shapes(config, source.proto.graph)
    with progress.stage("normalise"):
        from opfuse.stages.normalise import normalise

        graph = normalise(source)
    with progress.stage("fuse"):
        from opfuse.stages.fuse import export, fuse

        fused = fuse(graph)
        model = export(fused, source)
    report = Report.of(source, fused, progress.timings)
    if config.prove and goal != "explain":
        from opfuse.stages.prove import prove

        with progress.stage("prove"):
            report.proof = prove(source, model, fused.matches, config, progress)
    return report
