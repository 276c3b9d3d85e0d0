"""Conversions to fp16 and bf16: ours beside AutoCast, onnxconverter-common, and onnxruntime's.

For each model and tool: Casts between fp32 and the low type in the graph, whether ONNX's checker
and TensorRT for RTX take the result, and its error against the fp32 original in onnxruntime, in
ONNX's reference evaluator (every operator rounded, every type), and in onnxruntime with a rounding
behind every operator. Errors are root mean squares over those of the output, the worst output's,
and the median over ``--draws`` of the inputs. The last lines say for each model whether ours is
behind another tool's; the exit code is 1 where it is on one (see precision_verdict.py).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from benchmarks import precision_verdict
from benchmarks.measure import OPFUSE, run, versions, write
from benchmarks.planted import planted
from benchmarks.precision_floor import casts, floor
from benchmarks.precision_peer import TOOLS
from opfuse import child
from opfuse.engine.backend import Request
from opfuse.engine.profile import resolve
from opfuse.engine.tensorrt_rtx import TensorRtRtx
from opfuse.errors import OpfuseError
from opfuse.numerics import sample
from opfuse.numerics.compare import Array, compare
from opfuse.numerics.handover import Handover
from opfuse.numerics.session import CannotRun, OnnxRuntime, Reference
from opfuse.numerics.whole import Loaded

Feeds = Mapping[str, Array]
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PEER = Path(__file__).with_name("precision_peer.py")
LIMIT = 192 << 20
LONGEST = 16  # positions in the engines: some of the models have tables of few


def main() -> int:
    """Measure every model; 1 where ours fails on one of them or is worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--peers-python", help="an environment with the peers (default: none)")
    parser.add_argument("--precisions", nargs="+", default=list(LOW), choices=LOW)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--draws", type=int, default=5, help="of the inputs of each model")
    parser.add_argument("--no-engine", action="store_true", help="do not build engines")
    args = parser.parse_args()
    tools = ["opfuse", *(args.tools if args.peers_python else ())]
    rows: list[dict[str, Any]] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as name:
        overflows = Path(name, "planted.onnx")
        onnx.save(planted(), overflows)
        for precision, path in product(args.precisions, [*args.models, overflows]):
            for row in measure(path, precision, tools, args):
                rows.append(row)
                print(line(row), flush=True)
    pairs = [(row, _others(rows, row)) for row in rows if row["tool"] == "opfuse"]
    verdicts = [precision_verdict.told(*pair) for pair in pairs]
    print("", *verdicts, "", sep="\n")
    lost = sum(bool(precision_verdict.behind(*pair)) for pair in pairs)
    print(f"opfuse: behind another tool on {lost} of {len(pairs)}")
    for tool in args.tools:
        print(standing(pairs, tool))
    tested = {"versions": versions(["opfuse", "onnx", "onnxruntime"]), "draws": args.draws}
    print(write("precision", tested | {"rows": rows, "verdicts": verdicts}))
    return int(bool(lost))


HEAD = f"{'model':34} {'type':4} {'tool':21} {'casts':>5} {'all':>5} {'check':5} {'engine':6}"
HEAD += f" {'ort':>8} {'rounded':>8} {'reference':>9}  note"


def measure(
    path: Path, precision: str, tools: Sequence[str], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Convert one model with every tool and look at the results."""
    original = onnx.load(path)
    runs = draws(original, args.draws)
    with tempfile.TemporaryDirectory() as name:
        for tool in tools:
            target = Path(name, f"{tool}.onnx")
            row: dict[str, Any] = {"model": path.stem, "precision": precision, "tool": tool}
            made = run(command(tool, precision, path, target, args.peers_python))
            if made.code:
                yield row | {"failed": without_paths(made.last_line)[:160]}
            else:
                row |= look(target, LOW[precision], runs, engine=not args.no_engine)
                if tool == "opfuse":
                    row["floor"] = floor(onnx.load(target), LOW[precision])
                yield row


def draws(original: ModelProto, count: int) -> list[tuple[Feeds, list[Array]]]:
    """Inputs from several seeds, and what the original makes of each."""
    items = sample.inputs(original.graph)
    reference = OnnxRuntime(original)
    for sizes in sample.assignments(items):
        # Ours is calibrated with seed 0.
        feeds = [sample.draw(items, sizes, seed) for seed in range(1, count + 1)]
        try:
            return [(drawn, reference.run(drawn)) for drawn in feeds]
        except CannotRun as reason:
            failure = reason
    raise failure


def command(
    tool: str, precision: str, path: Path, target: Path, python: str | None
) -> tuple[str | Path, ...]:
    """What converts ``path`` to ``target``."""
    if tool == "opfuse":
        return (*OPFUSE, "fuse", path, "-o", target, "--precision", precision, "--no-prove")
    return (python or "", PEER, tool, precision, path, target)


def look(
    path: Path, low: int, runs: Sequence[tuple[Feeds, list[Array]]], *, engine: bool
) -> dict[str, Any]:
    """Everything that is told of one converted model."""
    model = onnx.load(path)
    row: dict[str, Any] = {"casts": casts(model, low), "all_casts": count(model)}
    row["checker"] = attempt(lambda: onnx.checker.check_model(model, full_check=True))
    row["ort"] = attempt(lambda: errors(OnnxRuntime(model).run, runs))
    row["reference"] = attempt(lambda: errors(Reference(model).run, runs))
    row["rounded"] = attempt(lambda: rounded(model, runs))
    if engine:
        row["engine"] = attempt(lambda: built(path, model, runs[0][0]))
    return row


def rounded(model: ModelProto, runs: Sequence[tuple[Feeds, list[Array]]]) -> list[float]:
    """The errors in onnxruntime with every operator's result rounded."""
    with tempfile.TemporaryDirectory() as name:
        subject = replace(Handover(Path(name)).subject(model, Path(name)), rounds=True)
        loaded = Loaded(subject, LIMIT)
        return errors(lambda feeds: list(loaded.run(feeds).values()), runs)


def built(path: Path, model: ModelProto, feeds: Feeds) -> None:
    """Let TensorRT for RTX parse the file as it is, and build it for the shapes of ``feeds``."""
    backend = TensorRtRtx()
    shapes = {name: array.shape for name, array in feeds.items()}
    ranges = resolve(model.graph, (shapes, shapes, shapes), LONGEST).ranges
    with tempfile.TemporaryDirectory() as name:
        request = Request(path, Path(name, "out.engine"), ranges)
        child.run(
            backend.build,
            [request],
            task=backend.name,
            time_limit=300,
            env=backend.environment(Path(name)),
        )


def count(model: ModelProto) -> int:
    """Casts of every kind in the graph."""
    return sum(node.op_type == "Cast" for node in model.graph.node)


def errors(
    compute: Callable[[Feeds], list[Array]], runs: Sequence[tuple[Feeds, list[Array]]]
) -> list[float]:
    """The root mean square error of each draw; infinite where NaN or infinity appears."""
    return [
        max(compare(a, np.asarray(b)).rms for a, b in zip(expected, compute(feeds), strict=True))
        for feeds, expected in runs
    ]


def attempt(action: Callable[[], object]) -> object:
    """What ``action`` gives, True for nothing, or the text of how it fails."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = action()
    except (CannotRun, OpfuseError, ValueError, onnx.checker.ValidationError) as failure:
        return without_paths(" ".join(str(failure).split()))[:200] or "failed"
    except Exception as failure:  # whatever a library raises on a broken model
        return without_paths(f"{type(failure).__name__}: {failure}")[:200]
    return True if result is None else result


def without_paths(text: str) -> str:
    """A message with files by their names only: folders tell of one machine."""
    return re.sub(r"(?<!\w)/(?:[\w.+-]+/)+", "", text)


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    text = f"{row['model'][:34]:34} {row['precision']:4} {row['tool']:21}"
    if "failed" in row:
        return f"{text} failed: {row['failed']}"
    ok = {True: "yes", None: "-"}
    checks = [ok.get(row.get(name) if row.get(name) in (True, None) else 0, "no") for name in (
        "checker", "engine",
    )]  # fmt: skip
    shown = [f"{precision_verdict.middle(row, name):.1e}" for name in precision_verdict.ERRORS]
    notes = [row[name] for name in ("checker", "ort", "engine") if isinstance(row.get(name), str)]
    text += f" {row['casts']:>5} {row['all_casts']:>5} {checks[0]:5} {checks[1]:6}"
    return f"{text} {shown[0]:>8} {shown[1]:>8} {shown[2]:>9}  {' '.join(notes)[:90]}"


def standing(pairs: Sequence[tuple[Mapping[str, Any], list[dict[str, Any]]]], tool: str) -> str:
    """How our Casts stand to those of ``tool`` where its model is valid and right."""
    found: Counter[str] = Counter()
    for ours, others in pairs:
        for row in others:
            if row["tool"] == tool:
                usable = "failed" not in {*row, *ours} and precision_verdict.right(row, ours)
                more = usable and row["casts"] - ours["casts"]
                at_floor = usable and ours["casts"] == ours["floor"]
                same = "as many, at the floor" if at_floor else "as many"
                kind = "fewer" if more > 0 else "more" if more < 0 else same
                found[kind if usable else "it fails, is not valid, or is wrong"] += 1
    return f"{tool}: opfuse has Casts: {', '.join(f'{k} {n}' for k, n in found.items())}"


def _others(rows: Sequence[dict[str, Any]], ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What other tools made of the same model."""
    same = [row for row in rows if row["model"] == ours["model"] and row["tool"] != "opfuse"]
    return [row for row in same if row["precision"] == ours["precision"]]


if __name__ == "__main__":
    sys.exit(main())
