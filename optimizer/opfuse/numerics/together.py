"""Runs a model in onnxruntime on rank 0, and all ranks' bundles on their GPUs, on the same inputs.

Lives in a child process of each rank.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opfuse import child
from opfuse.numerics.chunks import LIMIT
from opfuse.numerics.compare import Array, tolerance
from opfuse.numerics.engine import TF32, adapted, unequal
from opfuse.numerics.session import CannotRun
from opfuse.numerics.shares import Parts, given, joined
from opfuse.numerics.whole import Comparison, Loaded, Run, Subject, judge, paired
from opfuse.runtime.engine import Engine
from opfuse.runtime.group import Group

_WHILE_RANK_0_RUNS_S = 24 * 3600.0  # should it die, the others are told


def compare_rank(
    path: Path,
    original: Subject,
    parts: Parts,
    seed: int,
    rtol: float | None,
    shapes: Mapping[str, tuple[int, ...]],
    plugins: Path | None,
) -> Comparison:
    """Run this rank's bundle as :func:`opfuse.numerics.engine.compare_engine` does an engine.

    Args:
        path: The bundle.
        original: The model that was sharded; rank 0 runs it.
        parts: The inputs and outputs that ranks have parts of.
        seed: Of the inputs.
        rtol: Largest relative error; None takes the one of the coarsest type.
        shapes: Sizes of inputs, where they are not ours to choose.
        plugins: The plugin library, where the bundle does not hold it.

    Returns:
        On rank 0 what was found; nothing on the others.

    Raises:
        OpfuseError: The ranks cannot be loaded, do not take the inputs, or one is lost.
    """
    with Engine.load(path, plugins=plugins) as engine:
        group = engine.group
        assert group is not None
        first, runs, reason = _reference(group, original, seed, shapes)
        if reason:
            return Comparison({}, 0.0, not_run=reason)
        child.emit({"text": path.name})
        results, refused = _run(engine, group, runs, parts)
        elements = {value.dtype for value in (*engine.inputs, *engine.outputs)}
    if refused:
        return Comparison({}, 0.0, refused=refused)
    if first is None:
        return Comparison({}, 0.0)
    allowed = rtol if rtol is not None else max(TF32, tolerance(first.elements | elements))
    return _judged(original, first, runs, results, allowed, parts)


def _reference(
    group: Group, original: Subject, seed: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Loaded | None, list[Run], str]:
    """What rank 0 has run; the others get the inputs."""
    first, runs, reason = None, list[Run](), ""
    if group.world.rank == 0:
        try:
            first = Loaded(original, LIMIT)
            runs = first.run_somehow(seed, shapes)
        except (CannotRun, ValueError) as error:
            reason = str(error)
    words, *gifts = _hand_round(group, [reason.encode(), *(_packed(f) for f, _ in runs)])
    if group.world.rank:
        runs = [(_unpacked(data), {}) for data in gifts]
    return first, runs, words.decode()


def _hand_round(group: Group, mine: list[bytes]) -> list[bytes]:
    """What rank 0 gives, on all ranks."""
    zero = group.world.rank == 0
    count = int(group.share(str(len(mine)).encode() if zero else b"", _WHILE_RANK_0_RUNS_S)[0])
    return [group.share(mine[index] if zero else b"")[0] for index in range(count)]


def _run(
    engine: Engine, group: Group, runs: Sequence[Run], parts: Parts
) -> tuple[list[list[dict[str, Array]]], str]:
    """For each run the outputs of every rank; and where a graph gives other bits, what."""
    found = []
    for feeds, _ in runs:
        mine = given(adapted(engine, feeds), parts, group.world.rank)
        plain = engine.run(mine, graphs=False)
        replayed = engine.run(mine, graphs=True)
        words = [data.decode() for data in group.share(unequal(plain, replayed).encode())]
        if any(words):
            return [], next(f"rank {rank}: {text}" for rank, text in enumerate(words) if text)
        found.append([_unpacked(data) for data in group.share(_packed(replayed))])
    return found, ""


def _judged(
    original: Subject,
    first: Loaded,
    runs: Sequence[Run],
    results: Sequence[Sequence[Mapping[str, Array]]],
    allowed: float,
    parts: Parts,
) -> Comparison:
    """Every rank's outputs against the reference; parts are put together first."""
    pairs, found = [], []
    try:
        for run, outputs in zip(runs, results, strict=True):
            whole = {
                name: joined(name, [own[name] for own in outputs], parts)
                for name in outputs[0].keys() & parts.keys()
            }
            for own in outputs:
                pairs.append(run)
                found.append(paired(run[1], {**own, **whole}))
    except CannotRun as reason:
        return Comparison({}, allowed, refused=str(reason))
    return judge(original, first, pairs, found, allowed)


def _packed(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as bytes: NumPy has no name for bfloat16, so a type travels as bits and a word."""
    file = io.BytesIO()
    plain: dict[str, Any] = {
        f"a{i}": array.view(_bits(array)) for i, array in enumerate(arrays.values())
    }
    words = np.array([[name, array.dtype.name] for name, array in arrays.items()], dtype=np.str_)
    np.savez(file, words=words, **plain)
    return file.getvalue()


def _bits(array: Array) -> np.dtype[np.generic]:
    custom = array.dtype.kind == "V" or array.dtype.name not in np.sctypeDict
    return np.dtype(f"u{array.dtype.itemsize}") if custom else array.dtype


def _unpacked(data: bytes) -> dict[str, Array]:
    import ml_dtypes

    found = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for index, (name, kind) in enumerate(file["words"]):
            dtype = np.dtype(getattr(ml_dtypes, str(kind), str(kind)))
            found[str(name)] = file[f"a{index}"].view(dtype)
    return found
