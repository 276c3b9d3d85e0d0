"""How many of the patterns that a model has `opfuse fuse` finds, and whether its numbers stay.

For every model of a folder that has its ground truth beside it: fuses it with the command line,
counts the fused nodes by kind, and runs the fused model and the original in onnxruntime on the
same inputs at several sizes. Run it from the repository root: ``python -m benchmarks.recall DIR``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from benchmarks.measure import OPFUSE, print_table, run, versions, write
from benchmarks.truth import KINDS, Truth, read
from opfuse.numerics.retype import retype

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-3}  # bf16 is computed in fp32
WANTED = 0.95


@dataclass(frozen=True)
class Outcome:
    """One model: patterns found by kind, the largest relative error, and what went wrong."""

    truth: Truth
    found: Mapping[str, int]
    error: float
    nodes: tuple[int, int]
    seconds: float
    failure: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the command failed or the numbers changed."""
        return bool(self.failure) or not self.error <= TOLERANCES[self.truth.dtype]

    def missing(self) -> list[str]:
        """The kinds of which some were not found."""
        counts = self.truth.counts
        return [
            f"{kind} {self.found.get(kind, 0)}/{counts[kind]}"
            for kind in KINDS
            if self.found.get(kind, 0) < counts[kind]
        ]


def count(model: onnx.ModelProto, report: Mapping[str, Any], truth: Truth) -> dict[str, int]:
    """Patterns found, by kind, from the fused graph and the report."""
    nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx", "opfuse")]
    ops = Counter(node.op_type for node in nodes)
    merged = report["fusions"].get("qkv_merge", {}).get("fused", 0)
    if truth.packed_qkv:
        # Nothing is left to merge: the group counts where attention reads the packed projection.
        merged += min(ops["FlashAttention"], truth.counts["QKV groups"])
    return {
        "attention cores": ops["FlashAttention"],
        "norms": sum(
            ops[op] for op in ("RmsNorm", "AddRmsNorm", "LayerNormalization", "AddLayerNorm")
        ),
        "add+norm": ops["AddRmsNorm"] + ops["AddLayerNorm"],
        "RoPE applications": sum(len(node.output) for node in nodes if node.op_type == "Rope"),
        "GLU": ops["GatedAct"] + ops["GatedGemm"],
        "QKV groups": merged,
        "GEMM+activation": sum(map(_activates, nodes)),
        "GroupNorm+SiLU": ops["GroupNormSilu"],
    }


def _activates(node: onnx.NodeProto) -> bool:
    return node.op_type == "GemmAct" and any(
        attribute.name == "activation" and attribute.s != b"none" for attribute in node.attribute
    )


def fuse(model: Path, *, prove: bool) -> Outcome:
    """Fuses one model with the command line and compares the result with the original."""
    truth = read(model)
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder, model.name), Path(folder, "report.json")
        options = [] if prove else ["--no-prove"]
        command = [*OPFUSE, "fuse", model, "-o", output, "--quiet", "--report", report]
        done = run([*command, *options])
        if done.code:
            failure = f"exit {done.code}: {done.last_line}"
            return Outcome(truth, {}, float("inf"), (0, 0), done.seconds, failure)
        content = json.loads(report.read_text())
        fused = onnx.load(output)
        nodes = (content["model"]["nodes"], len(fused.graph.node))
        found = count(fused, content, truth)
        try:
            error = max(compare(model, output, truth, sizes) for sizes in truth.sizes)
        except Exception as failed:  # onnxruntime's errors share no public base class
            return Outcome(truth, found, float("inf"), nodes, done.seconds, f"{failed}"[:300])
        return Outcome(truth, found, error, nodes, done.seconds)


def compare(original: Path, fused: Path, truth: Truth, sizes: Mapping[str, int]) -> float:
    """The largest difference of an output, relative to the largest value of that output."""
    sessions = [_session(path, truth.dtype) for path in (original, fused)]
    dtypes = {item.name: _numpy_type(item.type) for item in sessions[0].get_inputs()}
    feeds = truth.feeds(sizes, dtypes, seed=sum(sizes.values()))
    pairs = zip(*(session.run(None, feeds) for session in sessions), strict=True)
    return max(_difference(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    largest = np.nanmax(np.abs(a), initial=0.0)
    return float(np.nanmax(np.abs(a - b), initial=0.0) / max(largest, 1e-30))


def _session(path: Path, dtype: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The models as they are written, not what onnxruntime would make of them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.load(path)
    if dtype == "bf16":  # of which it has no kernels on the CPU; float32 has the same range
        model = retype(model, {TensorProto.BFLOAT16}, TensorProto.FLOAT)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _numpy_type(text: str) -> np.dtype:
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bool)": "bool"}
    return np.dtype(names.get(text, text.removeprefix("tensor(").removesuffix(")")))


def _totals(outcomes: list[Outcome]) -> dict[str, tuple[int, int]]:
    """Found and true patterns by kind; what a model has too many of does not count."""
    return {
        kind: (
            sum(min(one.found.get(kind, 0), one.truth.counts[kind]) for one in outcomes),
            sum(one.truth.counts[kind] for one in outcomes),
        )
        for kind in KINDS
    }


def _print(outcomes: list[Outcome]) -> None:
    for one in outcomes:
        status = "WRONG" if one.wrong else "ok"
        before, after = one.nodes
        print(
            f"{status:5} {one.truth.path.stem:40} {before:4} -> {after:3} nodes  "
            f"error {one.error:.1e}  {one.seconds:4.1f} s  {', '.join(one.missing())}"
        )
        if one.failure:
            print(f"      {one.failure}")
    rows = [
        (kind, str(found), str(there), f"{found / there:.1%}" if there else "-")
        for kind, (found, there) in _totals(outcomes).items()
    ]
    print()
    print_table(("kind", "found", "there", "recall"), rows)


def main() -> int:
    """Measures the folder; 1 where a result is wrong or a recall is below 95%."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds NAME.onnx with NAME.json beside it")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--prove", action="store_true", help="let opfuse prove each match too")
    args = parser.parse_args()
    truths = sorted(args.folder.glob("*.json"))  # an export that failed has none
    models = [path.with_suffix(".onnx") for path in truths if args.only in path.name]
    outcomes = [fuse(path, prove=args.prove) for path in models]
    if not outcomes:
        parser.error(f"no model in {args.folder} has {args.only!r} in its name")
    _print(outcomes)
    wrong = [one.truth.path.stem for one in outcomes if one.wrong]
    print(f"\n{len(outcomes)} models, {len(wrong)} wrong results")
    totals = _totals(outcomes)
    figures = {
        "versions": versions(["opfuse", "onnx", "onnxruntime", "numpy"]),
        "models": len(outcomes),
        "wrong": wrong,
        "recall": {kind: {"found": a, "there": b} for kind, (a, b) in totals.items()},
        "errors": {one.truth.path.stem: one.error for one in outcomes},
        "missing": {one.truth.path.stem: one.missing() for one in outcomes if one.missing()},
    }
    if not args.only:
        print(write("recall", figures))
    low = any(found < WANTED * there for found, there in totals.values())
    return int(low or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
