"""The stages in order, on one screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse import lockfile
from opfuse.config import Config
from opfuse.errors import CheckFailed, InputError
from opfuse.files import check_output, scratch
from opfuse.progress import Progress
from opfuse.stages.report import (
    BENCH_SUFFIXES,
    COMPARISON_SUFFIXES,
    SUFFIXES,
    Report,
    check_suffix,
    describe,
    write_comparison,
    write_json,
)

if TYPE_CHECKING:
    from onnx import ModelProto

    from opfuse.engine.backend import EngineInfo
    from opfuse.explanation.result import Explanation
    from opfuse.graph.match import Match
    from opfuse.precision.result import Precision
    from opfuse.runtime.library import LibraryInfo
    from opfuse.stages.bench import Bench
    from opfuse.stages.fuse import Fused
    from opfuse.stages.library import Library
    from opfuse.stages.load import Source
    from opfuse.stages.lower import Lowering
    from opfuse.stages.package import Packaged
    from opfuse.stages.prove import Proof
    from opfuse.stages.verify import Comparison


def run(config: Config, goal: str, progress: Progress | None = None) -> Report:
    """Takes one model as far as the goal says.

    Args:
        config: The options; ``config.output`` is where "fuse" and "build" write.
        goal: "explain" writes nothing, "fuse" the fused ONNX file, "build" the engine. In a dry
            run they do the same work but TensorRT's, which only imports the network.
        progress: Told about each stage.

    Raises:
        OpfuseError: Any foreseen failure; the outputs are then as they were.
    """
    progress = progress or Progress()
    output = _checked_output(config, goal)
    if goal == "build" and not config.tune:
        lockfile.require_named(config.lock)
    with progress.stage("load"):
        from opfuse.stages.load import load, protect
        from opfuse.stages.shapes import check_shapes

        source = load(config.model)
        check_shapes(source, config)
        protect(source, _outputs(config))
    proof = None
    if config.prove and goal != "explain":
        fused, model, proof = fuse_and_prove(source, config, progress)
    else:
        fused, model = fuse_model(source, {}, progress)
    built: dict[str, Any] = {}
    if goal == "explain" or any(path.suffix == ".html" for path in config.reports):
        built["explanation"] = explain_model(source, fused, config, progress)
    if config.precision != "keep" and goal != "explain":
        model, built["precision"] = convert_model(source, fused, model, config, progress)
    facts = describe(source, model, output, hashed=goal == "build")
    if goal == "build":
        library = _library(config)
        fused, model, proof = _widened(source, fused, model, proof, library, config, progress)
        accept = _acceptance(built.get("precision"))
        built |= _built(source, fused, model, library, config, progress, accept)
    elif output is not None and not config.dry_run:
        with progress.stage("save"):
            from opfuse.stages.save import save

            save(fused.graph, model, source, output)
    report = Report(facts, _standing(fused), fused.misses, fused.counts, proof, **built)
    report = replace(report, timings=dict(progress.timings))
    if config.dry_run:
        return replace(report, unwritten=_unwritten(config))
    for path in config.reports:
        report.write(path)
    return report


def verify(a: Path, b: Path, config: Config, progress: Progress | None = None) -> Comparison:
    """Runs two models on the same inputs, compares their outputs, and writes the reports of it."""
    from opfuse.stages.verify import verify as compare

    check_reports(config, COMPARISON_SUFFIXES)
    with (progress or Progress()).stage("verify"):
        comparison = compare(a, b, config)
    if config.bisect and not comparison.passed and not comparison.refused:
        from opfuse.bisecting import bisected

        comparison = bisected(a, b, comparison, config, progress)
    for path in config.reports:
        write_comparison(comparison, path)
    return comparison


def bench(
    engine: Path, others: Sequence[Path], config: Config, progress: Progress | None = None
) -> Bench:
    """Times an engine and others beside it; TensorRT alone builds the ONNX models among them."""
    from opfuse.stages.bench import bench as measure
    from opfuse.stages.bench import require_gpu

    check_reports(config, BENCH_SUFFIXES)
    if any(path.suffix == ".onnx" for path in (engine, *others)):
        require_gpu()
    progress = progress or Progress()
    titles = [f"{p}, TensorRT alone" if p.suffix == ".onnx" else "" for p in (engine, *others)]
    with scratch() as folder:
        paths = [
            unfused(path, folder, number, config, progress) if path.suffix == ".onnx" else path
            for number, path in enumerate((engine, *others))
        ]
        with progress.stage("bench"):
            result = measure(paths, config, progress).named(titles)
    for path in config.reports:
        if path.suffix == ".svg":
            from opfuse.stages.bench_plot import write_plot

            write_plot(result, path)
        else:
            write_json(result, path)
    return result


def unfused(path: Path, folder: Path, number: int, config: Config, progress: Progress) -> Path:
    """An engine of a model as TensorRT alone makes it."""
    from opfuse.original import original
    from opfuse.stages.build import build

    with progress.stage("build"):
        model = original(path)
        output = folder / f"{number}-{path.stem}.engine"
        own = replace(config, output=output, timing_cache=None, use_cache=False)
        build(model, folder, own, progress)
        return output


def package(
    engine: Path,
    repository: Path,
    *,
    name: str | None = None,
    report: Path | None = None,
    max_batch: int | None = None,
    plugin_library: Path | None = None,
) -> Packaged:
    """Writes an engine or a bundle into a Triton model repository."""
    from opfuse.stages.package import package as write

    return write(engine, repository, name, report, max_batch, plugin_library)


def plugins(library: Path | None) -> LibraryInfo:
    """Describes the plugin library."""
    from opfuse.stages.library import describe_library

    return describe_library(library)


def _checked_output(config: Config, goal: str) -> Path | None:
    """Refuses, before any work, what could not be written or built after it."""
    outputs = _outputs(config)
    for path in config.reports:
        check_suffix(path, SUFFIXES)
    check_outputs(outputs)
    if goal == "explain":
        return None
    if config.output is None:
        raise InputError(f"{goal} has no output file", "name one with -o or --output")
    if goal == "build":
        from opfuse.stages.build import require
        from opfuse.stages.library import choose_library

        require(config)
        choose_library(config)
    return config.output


def check_outputs(outputs: Sequence[Path]) -> None:
    """Refuses, before any work, outputs that could not be written, or two of one name."""
    for path in outputs:
        check_output(path)
        if sum(os.path.realpath(path) == os.path.realpath(other) for other in outputs) > 1:
            raise InputError(f"{path} is named for two outputs", "give each a file of its own")


def check_reports(config: Config, suffixes: Sequence[str]) -> None:
    """Refuses, before any work, reports that could not be written after it."""
    for path in config.reports:
        check_suffix(path, suffixes)
        check_output(path)


def _unwritten(config: Config) -> tuple[str, ...]:
    """What a dry run would have written."""
    lock = [config.lock] if config.tune else []
    return tuple(map(str, (*_outputs(config), *lock)))


def _outputs(config: Config) -> list[Path]:
    others = [path for path in (config.output, config.timing_cache) if path is not None]
    return [*config.reports, *others]


def _standing(fused: Fused) -> tuple[Match, ...]:
    """The matches that no wider one took in."""
    nodes = fused.graph.nodes
    names = {node.name for node in nodes}
    made = {(tensor.name, node.op) for node in nodes for tensor in node.outputs}
    return tuple(
        match
        for match in fused.matches
        if match.node in names or any((name, match.kind) in made for name in match.writes)
    )


def fuse_model(
    source: Source, vetoes: Mapping[str, str], progress: Progress
) -> tuple[Fused, ModelProto]:
    """Brings the model into its normal form and fuses it, but for what ``vetoes`` name."""
    with progress.stage("normalise"):
        from opfuse.stages.normalise import normalise

        normal = normalise(source)
    with progress.stage("fuse"):
        from opfuse.stages.fuse import export, fuse

        fused = fuse(normal, vetoes)
        return fused, export(fused, source)


def fuse_and_prove(
    source: Source, config: Config, progress: Progress
) -> tuple[Fused, ModelProto, Proof]:
    """Fuses again without what the proof refutes, until it refutes nothing."""
    from opfuse.stages.prove import prove

    failed: tuple[Any, ...] = ()
    vetoes: dict[str, str] = {}
    while True:
        fused, model = fuse_model(source, vetoes, progress)
        with progress.stage("prove"):
            proof = prove(source, model, fused.graph, fused.matches, config, progress)
        failed += proof.failed
        if not proof.failed or proof.vetoes.keys() <= vetoes.keys():
            break
        vetoes |= proof.vetoes
    whole = proof.whole
    if proof.failed or (whole is not None and not whole.passed):
        error = whole.refused or f"relative error {whole.max_rel_err:.1e}" if whole else ""
        raise CheckFailed(
            f"{source.path}: the fused model does not compute what the original does: {error}",
            "report it with the model; --no-prove writes the result all the same",
        )
    return fused, model, replace(proof, failed=failed)


def convert_model(
    source: Source, fused: Fused, model: ModelProto, config: Config, progress: Progress
) -> tuple[ModelProto, Precision]:
    """Converts the fused graph to another precision and compares it with the original."""
    from opfuse.stages.fuse import export
    from opfuse.stages.precision import convert, judge, prepare

    with progress.stage("precision"):
        if prepare(fused, config):
            model = export(fused, source)
        precision = convert(source, fused, model, config, progress)
        model = export(fused, source)
        if config.prove:
            precision = judge(source, fused, model, precision, config, progress)
    return model, precision


def explain_model(source: Source, fused: Fused, config: Config, progress: Progress) -> Explanation:
    """Tells what became of every candidate, and what the fusions save."""
    from opfuse.stages.explain import explain
    from opfuse.stages.shapes import chosen_shapes

    with progress.stage("explain"):
        return explain(fused, config.gpu, *chosen_shapes(source, config))


def _library(config: Config) -> Library:
    from opfuse.stages.library import choose_library

    return choose_library(config)


def _widened(
    source: Source,
    fused: Fused,
    model: ModelProto,
    proof: Proof | None,
    library: Library,
    config: Config,
    progress: Progress,
) -> tuple[Fused, ModelProto, Proof | None]:
    """Takes together what the library has one op for, unless a proof refutes any of it."""
    from opfuse.stages.fuse import export, widen
    from opfuse.stages.prove import prove

    with progress.stage("lower"):
        wide = widen(fused, library.ops, source.base_dir)
        made = wide.matches[len(fused.matches) :]
        if not made:
            return wide, model, proof
        wider = export(wide, source)
    if proof is None:
        return wide, wider, None
    with progress.stage("prove"):
        more = prove(source, wider, wide.graph, made, config, progress, whole=False)
    proof = replace(
        proof,
        matches=proof.matches + more.matches,
        failed=(*proof.failed, *more.failed),
        max_rel_err=max(proof.max_rel_err, more.max_rel_err),
    )
    return (fused, model, proof) if more.failed else (wide, wider, proof)


def _acceptance(precision: Precision | None) -> Callable[[EngineInfo], None] | None:
    """What refuses an engine that is not in the precision that was asked for."""
    from opfuse.stages.precision import check_engine

    return None if precision is None else partial(check_engine, precision=precision)


def _built(
    source: Source,
    fused: Fused,
    model: ModelProto,
    library: Library,
    config: Config,
    progress: Progress,
    accept: Callable[[EngineInfo], None] | None,
) -> dict[str, Any]:
    from opfuse.original import build_as_it_is
    from opfuse.stages.build import build, check
    from opfuse.stages.lower import lower
    from opfuse.stages.save import save

    engine = decided = None
    with scratch() as folder:
        with progress.stage("lower"):
            save(fused.graph, model, source, folder / "fused.onnx")
            lowering = lower(model, config.lower, library.ops)
        note = "--tune measured nothing: that is for --lower auto with a plugin library"
        note = note if config.tune else ""
        if config.lower == "auto" and library.path is not None:
            with progress.stage("tune"):
                from opfuse.stages.tune import decide

                measuring = replace(config, tune=config.tune and not config.dry_run)
                decided = decide(model, folder, library.path, measuring, progress)
                lowering, note = _with_reasons(lowering, decided.nodes), decided.note
        with progress.stage("build"):
            used = library.path if any(item.choice == "plugin" for item in lowering) else None
            if decided is not None and not decided.taken:
                engine = build_as_it_is(source, folder, config, progress, accept, decided.left)
            if engine is None:
                parts = (model, folder, config, progress, used)
                engine = check(*parts) if config.dry_run else build(*parts, accept)
    left = {node: ("leave", reason) for node, reason in engine.left.items()}
    if note:
        engine = replace(engine, notes=(*engine.notes, note))
    asked = {"lower": config.lower, "calibrate": config.calibrate}
    return {"lowering": _with_reasons(lowering, left), "engine": engine, "asked": asked}


def _with_reasons(
    lowering: Sequence[Lowering], known: Mapping[str, tuple[str, str]]
) -> tuple[Lowering, ...]:
    """The lowering with the choices and reasons that came to be known later."""
    return tuple(
        replace(item, choice=known[item.node][0], reason=known[item.node][1])
        if item.node in known
        else item
        for item in lowering
    )
