"""Exported models wired otherwise: what still runs must keep its own numbers when it is fused.

In each mutant an input or two of some node read another tensor of the same shapes and type, which
is how a pattern is nearly met in ways that nobody thought of. Guards alone are on trial: nothing
is proved here. From the repository root: ``python -m benchmarks.rewire DIR --mutants 20 --seed 0``.
A mutant hangs on its model's name, the seed, and its number alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.helper import make_empty_tensor_value_info

from benchmarks.measure import print_table
from opfuse.fusions import DEFINITIONS
from opfuse.numerics import sample
from opfuse.numerics.compare import Array, compare, tolerance
from opfuse.numerics.session import CannotRun, OnnxRuntime
from opfuse.stages.fuse import export, fuse, widen
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise

Feeds = Mapping[str, Array]
Kinds = Mapping[str, tuple[tuple[tuple[int, ...], str], ...]]  # shape and type in each run

_NEAR = 60  # nodes: what stands closer is part of the same layer
_DRAWS = 2  # sizes that each model runs at
_TIMES = 4  # the tolerance of a proof, which settles more rounding than this does
_RESULTS = ("same", "invalid", "wrong", "crash")


@dataclass(frozen=True)
class Verdict:
    """What came of one mutant: ``invalid`` does not run as it is."""

    result: str
    wiring: tuple[str, ...]
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Tell whether opfuse did what it must not."""
        return self.result in ("wrong", "crash")


def main() -> int:
    """Judge mutants of every model of a folder, and return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="ONNX models; fp32 ones are taken")
    parser.add_argument("--mutants", type=int, default=20, help="of each model (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    for path in sorted(args.folder.glob("*.onnx")):
        counts[path.stem] = Counter()
        for number, verdict in enumerate(verdicts(path, args.mutants, args.seed)):
            counts[path.stem][verdict.result] += 1
            if verdict.failed:
                print(f"{path.stem} {number}: {verdict.result}: {'; '.join(verdict.wiring)}: "
                      f"{verdict.detail}", flush=True)  # fmt: skip
    total = sum(counts.values(), Counter[str]())
    rows = [(name, *(str(found[r]) for r in _RESULTS)) for name, found in counts.items()]
    print_table(("", *_RESULTS), [*rows, ("all", *(str(total[r]) for r in _RESULTS))])
    return int(bool(total["wrong"] + total["crash"]))


def verdicts(path: Path, mutants: int, seed: int) -> Iterator[Verdict]:
    """Judge mutants of one model; none of one that has fp16 in it, or that does not run."""
    model = onnx.load(path)
    del model.graph.value_info[:]  # which may not hold for a mutant
    drawn = _feeds(model, seed)
    kinds = _kinds(model, drawn) if drawn else {}
    if not drawn or any(kind == "float16" for (kind,) in (k[0][1:] for k in kinds.values())):
        return
    for number in range(mutants):
        choice = random.Random(f"{path.stem} {seed} {number}")
        mutant, wiring = rewired(model, kinds, choice)
        yield judged(mutant, wiring, path.parent, drawn)


def rewired(
    model: onnx.ModelProto, kinds: Kinds, choice: random.Random
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a copy of ``model`` in which one input, or two, reads another tensor; and which."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    nodes = mutant.graph.node
    place = {name: index for index, node in enumerate(nodes) for name in node.output}
    alike: dict[object, list[str]] = {}
    for name, kind in kinds.items():
        alike.setdefault(kind, []).append(name)
    wiring: list[str] = []
    for _ in range(choice.choice((1, 1, 1, 2))):
        index = choice.randrange(len(nodes))
        inputs = [i for i, name in enumerate(nodes[index].input) if name in kinds]
        if not inputs:
            continue
        at = choice.choice(inputs)
        old = nodes[index].input[at]
        others = [n for n in alike[kinds[old]] if n != old and place.get(n, -1) < index]
        near = [name for name in others if index - place.get(name, -1) < _NEAR] or others
        if near:
            nodes[index].input[at] = choice.choice(near)
            change = f"{old} -> {nodes[index].input[at]}"
            wiring.append(f"{nodes[index].op_type} {nodes[index].name} input {at}: {change}")
    return mutant, tuple(wiring)


def judged(
    mutant: onnx.ModelProto, wiring: tuple[str, ...], folder: Path, drawn: Sequence[Feeds]
) -> Verdict:
    """Compare a mutant with what it is fused to, as for a file and as for an engine."""
    try:
        original = OnnxRuntime(mutant)
        wanted = [original.run(feeds) for feeds in drawn]
    except CannotRun as reason:
        return Verdict("invalid", wiring, str(reason))
    for library in ((), tuple(DEFINITIONS)):
        try:
            fused = OnnxRuntime(_fused(mutant, folder, library))
            found = [fused.run(feeds) for feeds in drawn]
        except Exception as error:  # whatever a pass raises is a finding
            return Verdict("crash", wiring, f"{type(error).__name__}: {error}")
        for info, *pair in zip(mutant.graph.output, *_columns(wanted, found), strict=True):
            if far := _difference(*pair):
                return Verdict("wrong", wiring, f"{info.name}: {far}")
    return Verdict("same", wiring)


def _columns(*runs: list[list[Array]]) -> list[list[list[Array]]]:
    """Return the outputs by output, then by draw."""
    return [[list(values) for values in zip(*run, strict=True)] for run in runs]


def _difference(wanted: list[Array], found: list[Array]) -> str:
    allowed = _TIMES * tolerance([onnx.TensorProto.FLOAT])
    for want, have in zip(wanted, found, strict=True):
        apart = compare(want, have)
        if not apart.within(allowed):
            return str(apart)
    return ""


def _fused(model: onnx.ModelProto, folder: Path, library: tuple[str, ...]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    source = Source(Path("mutant.onnx"), copy, folder)
    fused = fuse(normalise(source))
    return export(widen(fused, library, folder) if library else fused, source)


def _feeds(model: onnx.ModelProto, seed: int) -> list[Feeds]:
    """Return inputs of the first sizes that the model takes."""
    items, found = sample.inputs(model.graph), list[Feeds]()
    runner = OnnxRuntime(model)
    for sizes in sample.assignments(items):
        try:
            feeds = sample.draw(items, sizes, seed)
            runner.run(feeds)
        except (CannotRun, ValueError):
            continue
        found.append(feeds)
        if len(found) == _DRAWS:
            break
    return found


def _kinds(model: onnx.ModelProto, drawn: Sequence[Feeds]) -> Kinds:
    """Return the shapes and types of all tensors in each run."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    shown.graph.output.extend(make_empty_tensor_value_info(name) for name in names)
    runner = OnnxRuntime(shown)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    runs = [
        {**weights, **feeds, **dict(zip(names, runner.run(feeds), strict=True))} for feeds in drawn
    ]
    return {
        name: tuple((run[name].shape, str(run[name].dtype)) for run in runs)
        for name in runs[0]
        if all(isinstance(run[name], np.ndarray) for run in runs)
    }


if __name__ == "__main__":
    sys.exit(main())
