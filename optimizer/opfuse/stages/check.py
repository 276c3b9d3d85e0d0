"""Holds one model against opfuse.lock, or writes the lock anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from opfuse import __version__, child, lockfile
from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.engine.wheel import versions
from opfuse.errors import InputError, MissingComponent, OpfuseError
from opfuse.files import file_hash, scratch
from opfuse.gate import bounds, judge, pinned, weights
from opfuse.gate.culprit import Scene
from opfuse.gate.neighbours import Neighbours
from opfuse.gate.result import FAILED, SKIPPED, Change, Check, Expectation
from opfuse.gate.shape import SECTIONS, check_shape
from opfuse.numerics.compare import TOLERANCE, tolerance
from opfuse.numerics.fingerprint import Fingerprint
from opfuse.numerics.handover import Handover
from opfuse.precision.types import LOW
from opfuse.runtime import bundle, library
from opfuse.runtime.origin import model_of
from opfuse.stages.load import Source

if TYPE_CHECKING:
    from onnx import ModelProto

    from opfuse.explanation.result import Anchor
    from opfuse.precision.result import Precision
    from opfuse.progress import Progress
    from opfuse.stages.fuse import Fused
    from opfuse.stages.prove import Proof

Sections = dict[str, Any]


@dataclass(frozen=True)
class Locked:
    """A lock as it was read: its sections, and those of others; empty where there is none yet."""

    path: Path
    content: Mapping[str, Any]

    @property
    def pins(self) -> bool:
        """Whether a check was written into it before."""
        return any(section in self.content for section in SECTIONS if section != "opfuse")


@dataclass(frozen=True)
class Found:
    """What a run found of the model: fused, proven, and converted as the options say.

    ``broken`` says why it does not compute what the original does; there is no proof then.
    """

    source: Source
    fused: Fused
    model: ModelProto
    proof: Proof | None
    precision: Precision | None
    broken: str = ""


def configured(model: Path, given: Mapping[str, Any]) -> tuple[Config, Locked]:
    """The options of a check: those that are given, else those of the lock.

    Raises:
        InputError: An option is wrong, or the lock is missing, is none, or pins nothing.
    """
    path, update = Path(given.get("lock", lockfile.NAME)), bool(given.get("update"))
    there = path.exists() or not update
    locked = Locked(path, lockfile.read(path) if there else {})
    check_shape(locked.content, path)
    if not locked.pins and not update:
        raise InputError(
            f"{path} pins nothing of {model} yet",
            f"opfuse check {model} --lock {path} --update, and commit it",
        )
    pins = pinned.as_arguments(locked.content.get("options", {}), path.parent)
    if given.get("precision") == "keep":  # then there is nothing that these could be of
        pins = {k: v for k, v in pins.items() if k not in ("io_precision", "calibrate")}
    try:
        return Config(model, **{**pins, **given}), locked
    except InputError as error:
        raise InputError(f"{path}: {error.what}", error.fix) from None


def refuse_other_model(source: Source, locked: Locked, config: Config) -> None:
    """Refuse, before any work, a lock of a model with which this one shares no input or output.

    Raises:
        InputError: It is.
    """
    was = locked.content.get("model", {})
    weights = {tensor.name for tensor in source.proto.graph.initializer}
    graph = source.proto.graph
    names = {
        "inputs": {item.name for item in graph.input} - weights,
        "outputs": {item.name for item in graph.output},
    }
    for side, now in names.items():
        if not config.update and was.get(side) and now.isdisjoint(was[side]):
            raise InputError(
                f"{locked.path} is the lock of another model, {was.get('file', 'unnamed')}: its "
                f"{side} are {', '.join(sorted(was[side]))}, those of {source.path} are "
                f"{', '.join(sorted(now))}",
                "name the lock of this model with --lock; if the model has changed, --update "
                "writes it anew",
            )


def check(
    found: Found,
    locked: Locked,
    config: Config,
    progress: Progress,
    anchors: Callable[[], Sequence[Anchor]],
    measure: Callable[[Path], Any],
) -> Check:
    """Hold what was found against the lock, or write the lock where ``config.update`` says so.

    Args:
        found: The model, fused and proven.
        locked: The lock.
        config: The options; those of the lock are among them.
        progress: Told about the steps.
        anchors: What became of every node that a fusion is expected at; called where one is lost.
        measure: Times an engine on this machine's GPU and gives a measurement.

    Raises:
        InputError: A file that is named is not what it should be, or the lock cannot be written.
    """
    now, why_no_library = _sections(found, locked, config)
    built = None if config.engine is None else _built(config.engine)
    time = _timed(locked, config, measure)
    if config.update:
        now["outputs"] = _outputs(found.source, config, progress)
        _keep_rtol(now["outputs"], locked.content.get("outputs", {}))
        _refuse_strangers(config, now, time, built)
        now["bounds"] = bounds.updated(locked.content.get("bounds", {}), time, built)
        return _written(found, locked, _as_json(now), config)
    if _must_run(locked.content, now):
        now["outputs"] = _outputs(found.source, config, progress)
    now = _as_json(now)
    evidence = _evidence(found, anchors)
    expectations = [
        *_judged(locked.content, now, evidence, why_no_library),
        *bounds.ties(config.model, now["model"]["sha256"], time, built),
        *bounds.judge(locked.content.get("bounds", {}), time, built),
        *(bounds.bundle(locked.content, built) if built else ()),
    ]
    return replace(_told(found, config), expectations=tuple(expectations))


def _refuse_strangers(
    config: Config, now: Sections, time: bounds.Timed | None, built: bounds.Built | None
) -> None:
    """Refuse to write limits from an engine of another model, or from the time of another engine.

    Raises:
        InputError: It is one.
    """
    for item in bounds.ties(config.model, now["model"]["sha256"], time, built):
        if item.status == FAILED:
            raise InputError(item.message, item.fix)


def _sections(found: Found, locked: Locked, config: Config) -> tuple[Sections, str]:
    """The sections of now, without outputs and bounds, and why there is no plugin library."""
    source, folder = found.source, locked.path.parent
    functions = {function.name: function for function in found.model.functions}
    rtol = config.rtol or TOLERANCE[LOW.get(config.precision, TensorProto.FLOAT)]
    plugins, why = _plugins(config)
    return {
        "opfuse": __version__,
        "model": pinned.model(source.path, source.proto, source.base_dir),
        "options": pinned.options(config, folder),
        "fusions": pinned.fusions(found.fused.counts, found.fused.misses),
        "proof": pinned.proof(found.proof, _tolerance(found)),
        "precision": pinned.precision(found.fused, functions, found.precision, rtol),
        "plugins": plugins,
        "tensorrt": versions(),
    }, why


def _tolerance(found: Found) -> float:
    """The error that the proof allows."""
    whole = found.proof.whole if found.proof else None
    return whole.tolerance if whole and whole.tolerance else tolerance(())


def _plugins(config: Config) -> tuple[dict[str, str] | None, str]:
    """The plugin library, or None and the reason.

    Raises:
        MissingComponent: It is named by an option and is not there.
    """
    try:
        path = library.find(config.plugin_library)
        return {"version": library.describe(path).version, "sha256": file_hash(path)}, ""
    except MissingComponent as error:
        if config.plugin_library is not None:
            raise
        return None, error.what


def _built(path: Path) -> bounds.Built:
    if path.suffix == ".onnx":
        raise InputError(f"{path} is a model, and no engine", "name what opfuse build made of it")
    try:
        size = path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        size = 0
    if not size:
        raise InputError(f"there is no engine {path}", "build one with opfuse build")
    found = bounds.Built(path, size, file_hash(path), model_of(path))
    if not bundle.is_bundle(path):
        return found
    lock = bundle.Bundle.open(path).lock
    return replace(found, tensorrt=(lock.module, lock.tensorrt), library=lock.library)


def _timed(locked: Locked, config: Config, measure: Callable[[Path], Any]) -> bounds.Timed | None:
    """A measurement: from a report, else of the engine, where a limit waits for it."""
    if config.bench is not None:
        return bounds.read_bench(config.bench)
    waits = "latency_us" in locked.content.get("bounds", {})
    if config.engine is None or gpu.absent() or not waits:
        return None
    return bounds.timed(_as_json(asdict(measure(config.engine))))


def _must_run(locked: Mapping[str, Any], now: Sections) -> bool:
    """Whether the outputs have to be computed: equal bytes and options compute the same."""
    same = locked.get("model", {}).get("sha256") == now["model"]["sha256"]
    pinned_ones = bool(locked.get("outputs", {}).get("values"))
    return pinned_ones and not same and _drawn_alike(locked, now)


def _drawn_alike(locked: Mapping[str, Any], now: Sections) -> bool:
    """Whether the options draw the inputs that the lock's outputs are of."""
    was, are = locked.get("options", {}), now["options"]
    return all(was.get(name, are[name]) == are[name] for name in ("seed", "opt_shapes"))


def _outputs(source: Source, config: Config, progress: Progress) -> Sections:
    """What the original computes on seeded inputs."""
    progress.step("the outputs of the model on seeded inputs")
    with scratch() as folder:
        subject = Handover(folder).subject(source.proto, source.base_dir)
        try:
            found: Fingerprint = child.run(
                "opfuse.numerics.fingerprint:take",
                (subject, config.seed, dict(config.opt_shapes)),
                task="the model",
                time_limit=config.time_limit,
            )
        except OpfuseError as death:
            if death.exit_code != 4:  # what kills the process is a reason, a time limit is none
                raise
            found = Fingerprint({}, {}, not_run=death.what)
        # What a library says may hold the path of its file; the lock has none.
        found = replace(found, not_run=found.not_run.replace(str(folder), ""))
    facts = asdict(found)
    facts["values"] = facts.pop("outputs")
    return facts | {"weights": weights.sums(source.proto, source.base_dir)}


def _keep_rtol(outputs: Sections, locked: Mapping[str, Any]) -> None:
    """Leave the tolerance that somebody may have set in the lock."""
    if locked.get("computed_in") == outputs["computed_in"] and "rtol" in locked:
        outputs["rtol"] = locked["rtol"]


def _evidence(found: Found, anchors: Callable[[], Sequence[Anchor]]) -> judge.Evidence:
    proof, precision = found.proof, found.precision
    whole = proof.whole if proof else None
    compared = precision.comparison.outputs.values() if precision and precision.comparison else ()
    return judge.Evidence(
        scene=cache(
            lambda: Scene(found.fused.misses, anchors(), Neighbours(found.source.proto.graph))
        ),
        broken=found.broken,
        error=proof.max_rel_err if proof else 0.0,
        rms=max((item.rms for item in compared), default=0.0),
        undone=[f"{f.kind} at {', '.join(f.nodes[:1])}: {f.reason}" for f in proof.failed]
        if proof
        else (),
        whole=whole.not_run if whole else "",
        kept=[(k.op, f"{k.node}: {k.reason}") for k in precision.kept] if precision else (),
    )


def _judged(
    locked: Mapping[str, Any], now: Sections, evidence: judge.Evidence, why_no_library: str
) -> Iterator[Expectation]:
    found = _sections_judged(locked, now, evidence, why_no_library)
    yield from judge.epsilons(locked.get("precision", {}), now["precision"], found)


def _sections_judged(
    locked: Mapping[str, Any], now: Sections, evidence: judge.Evidence, why_no_library: str
) -> Iterator[Expectation]:
    yield from judge.model(locked.get("model", {}), now["model"])
    yield from judge.options(locked.get("options", {}), now["options"])
    if "fusions" in locked:
        yield from judge.fusions(locked["fusions"], now["fusions"], evidence)
    yield from judge.proof(locked.get("proof"), now["proof"], evidence)
    if _drawn_alike(locked, now):
        yield from judge.outputs(locked.get("outputs", {}), now.get("outputs"))
    else:
        text = "the inputs are drawn from another seed or for other shapes than the lock's"
        yield Expectation("outputs", "", SKIPPED, text)
    if not evidence.broken:
        yield from judge.precision(locked.get("precision", {}), now["precision"], evidence)
    yield from judge.plugins(locked.get("plugins"), now["plugins"], why_no_library)
    yield from judge.tensorrt(locked.get("tensorrt", {}), now["tensorrt"])


def _written(found: Found, locked: Locked, now: Sections, config: Config) -> Check:
    """Write the lock, unless it would come out the same."""
    changes = tuple(_changes(locked.content, now))
    new = lockfile.merged(locked.content, now)
    fresh = not locked.content or changes
    if fresh:
        lockfile.write(locked.path, new)
    return replace(_told(found, config), changes=changes, written=bool(fresh), new=not locked.pins)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for section in SECTIONS:
        was, now = dict(_leaves(old.get(section), section)), dict(_leaves(new[section], section))
        for place in sorted({*was, *now}):
            if was.get(place) != now.get(place):
                yield Change(place, was.get(place), now.get(place))


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value with its place; lists are values."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{place}.{name}")
    else:
        yield place, value


def _told(found: Found, config: Config) -> Check:
    misses = sorted(found.fused.misses, key=lambda m: (m.kind, m.anchor, m.node, m.reason))
    kept = found.precision.kept if found.precision else ()
    return Check(
        str(config.model),
        str(config.lock),
        nearly=tuple(
            {"kind": m.kind, "node": m.node, "reason": m.reason, "advice": m.advice} for m in misses
        ),
        kept=tuple({"node": k.node, "op": k.op, "reason": k.reason} for k in kept),
    )


def _as_json(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))
