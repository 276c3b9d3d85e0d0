"""Conversions to fp16 and bf16: ours beside AutoCast, onnxconverter-common, and onnxruntime's.

For each model and tool: Casts between fp32 and the low type in the graph, whether ONNX's checker
and TensorRT for RTX take the result, and its error against the fp32 original in onnxruntime, in
ONNX's reference evaluator (every operator rounded, every type), and in onnxruntime with a rounding
behind every operator. Errors are root mean squares over those of the output, the worst output's.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from benchmarks.measure import OPFUSE, run, versions, write
from benchmarks.planted import planted
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
    parser.add_argument("--no-engine", action="store_true", help="do not build engines")
    args = parser.parse_args()
    tools = ["opfuse", *(args.tools if args.peers_python else ())]
    rows = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as name:
        overflows = Path(name, "planted.onnx")
        onnx.save(planted(), overflows)
        for precision, path in product(args.precisions, [*args.models, overflows]):
            rows += measure(path, precision, tools, args.peers_python, engine=not args.no_engine)
    worse = list(filter(None, (verdict(rows, row) for row in rows if row["tool"] == "opfuse")))
    print("\n".join(worse) or "opfuse: neither a larger error nor more Casts than another on any")
    for tool in TOOLS:
        print(standing(rows, tool))
    facts = {"versions": versions(["opfuse", "onnx", "onnxruntime"]), "rows": rows, "worse": worse}
    print(write("precision", facts))
    return int(bool(worse))


HEAD = f"{'model':34} {'type':4} {'tool':21} {'casts':>5} {'check':5} {'engine':6}"
HEAD += f" {'ort':>8} {'rounded':>8} {'reference':>9}  note"


def measure(
    path: Path, precision: str, tools: Sequence[str], python: str | None, *, engine: bool
) -> list[dict[str, Any]]:
    """Convert one model with every tool and look at the results."""
    original = onnx.load(path)
    items = sample.inputs(original.graph)
    reference = OnnxRuntime(original)
    for sizes in sample.assignments(items):
        feeds = sample.draw(items, sizes, seed=1)  # ours is calibrated with seed 0
        try:
            expected = reference.run(feeds)
        except CannotRun:
            continue
        break
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for tool in tools:
            target = Path(name, f"{tool}.onnx")
            row: dict[str, Any] = {"model": path.stem, "precision": precision, "tool": tool}
            made = run(command(tool, precision, path, target, python))
            if made.code:
                row["failed"] = without_paths(made.last_line)[:160]
            else:
                row |= look(target, LOW[precision], feeds, expected, engine=engine)
            rows.append(row)
            print(line(row), flush=True)
    return rows


def command(
    tool: str, precision: str, path: Path, target: Path, python: str | None
) -> tuple[str | Path, ...]:
    """What converts ``path`` to ``target``."""
    if tool == "opfuse":
        return (*OPFUSE, "fuse", path, "-o", target, "--precision", precision, "--no-prove")
    return (python or "", PEER, tool, precision, path, target)


def look(
    path: Path, low: int, feeds: Feeds, expected: list[Array], *, engine: bool
) -> dict[str, Any]:
    """Everything that is told of one converted model."""
    model = onnx.load(path)
    row: dict[str, Any] = {"casts": casts(model, low), "all_casts": count(model)}
    row["checker"] = attempt(lambda: onnx.checker.check_model(model, full_check=True))
    row["ort"] = attempt(lambda: error(expected, OnnxRuntime(model).run(feeds)))
    row["reference"] = attempt(lambda: error(expected, Reference(model).run(feeds)))
    row["rounded"] = attempt(lambda: error(expected, rounded(model, feeds)))
    if engine:
        row["engine"] = attempt(lambda: built(path, model))
    return row


def rounded(model: ModelProto, feeds: Feeds) -> list[Array]:
    """The outputs in onnxruntime with every operator's result rounded."""
    with tempfile.TemporaryDirectory() as name:
        subject = replace(Handover(Path(name)).subject(model, Path(name)), rounds=True)
        return list(Loaded(subject, LIMIT).run(feeds).values())


def built(path: Path, model: ModelProto) -> None:
    """Let TensorRT for RTX parse the file as it is, and build it without plugins."""
    backend = TensorRtRtx()
    ranges = resolve(model.graph, ({}, {}, {}), LONGEST).ranges
    with tempfile.TemporaryDirectory() as name:
        request = Request(path, Path(name, "out.engine"), ranges)
        child.run(
            backend.build,
            [request],
            task=backend.name,
            time_limit=300,
            env=backend.environment(Path(name)),
        )


def casts(model: ModelProto, low: int) -> int:
    """Casts between fp32 and the low type in the graph; bodies of functions are no part of it."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        types[info.name] = info.type.tensor_type.elem_type
    both = {TensorProto.FLOAT, low}
    return sum(
        node.op_type == "Cast" and types.get(node.input[0]) in both and target(node) in both
        for node in model.graph.node
    )


def target(node: onnx.NodeProto) -> int:
    """The type that a Cast gives."""
    return next(item.i for item in node.attribute if item.name == "to")


def count(model: ModelProto) -> int:
    """Casts of every kind in the graph."""
    return sum(node.op_type == "Cast" for node in model.graph.node)


def error(expected: list[Array], found: list[Array]) -> float:
    """The largest root mean square error of an output; infinite where NaN or infinity appears."""
    pairs = zip(expected, found, strict=True)
    return max(compare(a, np.asarray(b)).rms for a, b in pairs)


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
    errors = [row[name] for name in ("ort", "rounded", "reference")]
    shown = [f"{value:.1e}" if isinstance(value, float) else "no" for value in errors]
    notes = [row[name] for name in ("checker", "ort", "engine") if isinstance(row.get(name), str)]
    text += f" {row['casts']:>5} {checks[0]:5} {checks[1]:6}"
    return f"{text} {shown[0]:>8} {shown[1]:>8} {shown[2]:>9}  {' '.join(notes)[:90]}"


def standing(rows: list[dict[str, Any]], tool: str) -> str:
    """How often ours has fewer Casts than ``tool``, and how often as many, where both work."""
    ours = {(r["model"], r["precision"]): r for r in rows if r["tool"] == "opfuse"}
    theirs = [r for r in rows if r["tool"] == tool and r.get("checker") is True]
    pairs = [(ours[r["model"], r["precision"]].get("casts", 0), r["casts"]) for r in theirs]
    fewer, equal = sum(a < b for a, b in pairs), sum(a == b for a, b in pairs)
    return f"{tool}: valid on {len(pairs)}; opfuse has fewer Casts on {fewer}, as many on {equal}"


def _is_right(other: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether another tool's result is no overflow: fewer Casts are no merit of a wrong one."""
    theirs, own = other["rounded"], ours["rounded"]
    return isinstance(theirs, float) and isinstance(own, float) and theirs < 10 * own


def verdict(rows: list[dict[str, Any]], ours: Mapping[str, Any]) -> str:
    """In what ours is behind another tool on this model, or "".

    Two errors within a fifth of each other are the same: other roundings, other luck.
    """
    at = f"{ours['model']} {ours['precision']}"
    if "failed" in ours:
        return f"{at}: opfuse failed: {ours['failed']}"
    behind = [
        f"{name} does not take it"
        for name in ("checker", "engine")
        if ours.get(name, True) is not True
    ]
    for other in rows:
        same = (other["model"], other["precision"]) == (ours["model"], ours["precision"])
        if not same or other["tool"] == "opfuse" or "failed" in other:
            continue
        usable = other["checker"] is True and _is_right(other, ours)
        if usable and other["casts"] < ours["casts"]:
            behind.append(f"{other['tool']} has {other['casts']} Casts, opfuse {ours['casts']}")
        for name in ("ort", "rounded", "reference"):
            theirs, own = other[name], ours[name]
            if (
                usable
                and isinstance(theirs, float)
                and not (isinstance(own, float) and own <= 1.2 * theirs)
            ):
                behind.append(f"{name}: {other['tool']} {theirs}, opfuse {own}")
    return f"{at}: {'; '.join(behind)}" if behind else ""


if __name__ == "__main__":
    sys.exit(main())
