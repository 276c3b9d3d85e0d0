"""Runs a model in onnxruntime and an engine on the GPU on the same inputs; in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opfuse import child
from opfuse.errors import InputError
from opfuse.numerics.chunks import LIMIT
from opfuse.numerics.compare import FLOATS, Array, is_float, tolerance
from opfuse.numerics.layers import compare_steps
from opfuse.numerics.retype import convert
from opfuse.numerics.session import CannotRun
from opfuse.numerics.whole import Comparison, Loaded, Subject, judge, paired
from opfuse.runtime.engine import Engine

TF32 = 2e-2
"""TensorRT multiplies float32 in TF32, which has the ten bits of float16; 4e-3 was seen."""


def compare_engine(
    path: Path,
    original: Subject,
    seed: int,
    rtol: float | None,
    shapes: Mapping[str, tuple[int, ...]],
    plugins: Path | None = None,
    layers: bool = False,
) -> Comparison:
    """Run ``original`` on inputs made for it, and the engine twice on the same.

    The second run of the engine replays its CUDA graph, and has to give the same bits. With
    ``layers`` what every step of a bundle writes is compared too.

    Raises:
        OpfuseError: The engine cannot be loaded, or does not take the inputs.
    """
    try:
        first = Loaded(original, LIMIT)
        runs = first.run_somehow(seed, shapes)
    except (CannotRun, ValueError) as reason:
        return Comparison({}, 0.0, not_run=str(reason))
    child.emit({"text": path.name})
    results = []
    with Engine.load(path, plugins=plugins) as engine:
        elements = {value.dtype for value in (*engine.inputs, *engine.outputs)}
        for feeds, _ in runs:
            given = adapted(engine, feeds)
            plain = engine.run(given, graphs=False)
            replayed = engine.run(given, graphs=True)
            if difference := unequal(plain, replayed):
                return Comparison({}, 0.0, refused=difference)
            results.append(replayed)
        steps = compare_steps(path, engine, adapted(engine, runs[0][0])) if layers else ()
    allowed = rtol if rtol is not None else max(TF32, tolerance(first.elements | elements))
    try:
        matched = [paired(e, found) for (_, e), found in zip(runs, results, strict=True)]
    except CannotRun as reason:
        return Comparison({}, allowed, refused=str(reason))
    return replace(judge(original, first, runs, matched, allowed), layers=steps)


def adapted(engine: Engine, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of the model as the engine takes them: by name, floats in its type."""
    want = {value.name: value.dtype for value in engine.inputs}
    if set(want) - set(feeds):
        missing = ", ".join(sorted(set(want) - set(feeds)))
        raise InputError(f"the model has no input {missing}, which the engine has")
    return {
        name: convert(feeds[name], element)
        if element in FLOATS and is_float(feeds[name])
        else feeds[name]
        for name, element in want.items()
    }


def unequal(eager: Mapping[str, Array], replayed: Mapping[str, Array]) -> str:
    """What differs between a run and the replay of its graph; empty where nothing does."""
    for name, array in eager.items():
        if array.tobytes() != replayed[name].tobytes():
            return f"its CUDA graph gives {name!r} other values than the run that it was made from"
    return ""
