"""What opfuse, onnxruntime's optimizer, and onnxscript's rewriter find in the same models.

Each runs on every model of the folders that has its ground truth beside it. Found patterns are
counted by kind, and each result is compared with the original in onnxruntime. Run it from the
repository root: ``python -m benchmarks.recall_peers DIR ... --peers-python PYTHON``; the peers'
environment needs onnxruntime, onnxscript, and torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from benchmarks import peers, recall
from benchmarks.fuse_speed import VERSIONS
from benchmarks.measure import print_table, versions, write
from benchmarks.peer_tools import PEERS
from benchmarks.truth import KINDS, Truth, read

OURS = "opfuse"
# What onnxruntime says where an operator has no CPU kernel: neither broken nor compared.
_NO_KERNEL = ("NOT_IMPLEMENTED", "NotImplemented", "Could not find an implementation")


@dataclass
class Tally:
    """One tool over all models."""

    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    broken: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def add(self, truth: Truth, found: dict[str, int]) -> None:
        """Counts what is found, up to what is there."""
        for kind in KINDS:
            self.found[kind] += min(found.get(kind, 0), truth.counts[kind])

    def judge(self, truth: Truth, why: str) -> None:
        """Notes a failure under what it is."""
        if why:
            kernel = any(word in why for word in _NO_KERNEL)
            (self.not_run if kernel else self.broken)[truth.path.stem] = why


def ours(model: Path, tally: Tally, *, prove: bool) -> None:
    """Fuses with the command line."""
    outcome = recall.fuse(model, prove=prove)
    tally.add(outcome.truth, dict(outcome.found))
    if outcome.wrong:
        why = outcome.failure or f"differs by {outcome.error:.1e}"
        tally.broken[outcome.truth.path.stem] = why


def theirs(model: Path, peer: peers.Peer, tally: Tally) -> None:
    """Lets a peer write its model and counts in what it wrote last, and before that."""
    truth = read(model)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "peer.onnx")
        why = peer.run(model, output)
        stages = [path for path in (output, output.with_suffix(".python.onnx")) if path.exists()]
        counts = [peers.count(onnx.load(path), truth) for path in stages]
        if counts:
            tally.add(truth, {kind: max(one[kind] for one in counts) for kind in KINDS})
        tally.judge(truth, why or _difference(model, stages[0], truth))


def _difference(model: Path, output: Path, truth: Truth) -> str:
    try:
        error = max(recall.compare(model, output, truth, sizes) for sizes in truth.sizes)
    except Exception as failed:  # onnxruntime's errors share no public base class
        return f"{failed}".splitlines()[0][:300]
    return "" if error <= recall.TOLERANCES[truth.dtype] else f"differs by {error:.1e}"


def table(tallies: dict[str, Tally], there: dict[str, int]) -> list[tuple[str, ...]]:
    """A row for each kind, with the recall of each tool."""
    rows = [
        (kind, str(there[kind]), *(f"{t.found[kind] / there[kind]:.1%}" for t in tallies.values()))
        for kind in KINDS
        if there[kind]
    ]
    rows.append(("models broken or changed", "", *(str(len(t.broken)) for t in tallies.values())))
    rows.append(
        ("models without a CPU kernel", "", *(str(len(t.not_run)) for t in tallies.values()))
    )
    return rows


def _save(figures: dict[str, Any], header: Sequence[str], rows: list[tuple[str, ...]]) -> None:
    path = write("recall_peers", figures)
    lines = [f"{header[0]:30}" + "".join(f"{cell:>14}" for cell in header[1:])]
    lines += [f"{row[0]:30}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print(path)


def main() -> int:
    """Measures all models; 1 where ours is not first in a row or a result of ours is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="hold NAME.onnx and NAME.json")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--peers-python", default=sys.executable, help="where the peers live")
    parser.add_argument("--prove", action="store_true", help="let opfuse prove each match too")
    parser.add_argument("--peers-from", type=Path, help="a result: the peers are not run again")
    args = parser.parse_args()
    models = [path for folder in args.folders for path in sorted(folder.glob("*.onnx"))]
    models = [path for path in models if args.only in path.name]
    models = [path for path in models if path.with_suffix(".json").exists()]
    if not models:
        parser.error(f"no model there has {args.only!r} in its name")
    tallies = {name: Tally() for name in (OURS, *PEERS)}
    if args.peers_from:
        tallies |= _known(args.peers_from, models)
    workers = [peers.Peer(name, args.peers_python) for name in PEERS if not args.peers_from]
    for model in models:
        ours(model, tallies[OURS], prove=args.prove)
        for worker in workers:
            theirs(model, worker, tallies[worker.name])
        print(f"{model.stem}: {_said(tallies, model.stem)}", flush=True)
    for worker in workers:
        worker.close()
    return _report(tallies, models, args)


def _known(result: Path, models: list[Path]) -> dict[str, Tally]:
    """The peers' tallies of an earlier result on the same models."""
    content = json.loads(result.read_text())
    if content["models"] != len(models) or content["there"] != _there(models):
        raise SystemExit(f"{result} is about other models")
    return {
        name: Tally(told["found"], told["broken"], told["no_cpu_kernel"])
        for name, told in content["tools"].items()
        if name != OURS
    }


def _there(models: list[Path]) -> dict[str, int]:
    truths = [read(path) for path in models]
    return {kind: sum(truth.counts[kind] for truth in truths) for kind in KINDS}


def _said(tallies: dict[str, Tally], stem: str) -> str:
    said = {name: t.broken.get(stem) or t.not_run.get(stem) for name, t in tallies.items()}
    return "; ".join(f"{name}: {why[:100]}" for name, why in said.items() if why) or "ok"


def _report(tallies: dict[str, Tally], models: list[Path], args: argparse.Namespace) -> int:
    there = _there(models)
    header, rows = ("kind", "there", *tallies), table(tallies, there)
    print()
    print_table(header, rows)
    for name, tally in tallies.items():
        for stem, why in tally.broken.items():
            print(f"{name} broke {stem}: {why}")
    names = list(PEERS)
    listed = subprocess.run(
        [args.peers_python, "-c", VERSIONS, *names, "torch"], capture_output=True
    )
    figures = {
        "versions": {**versions(["opfuse", "onnx"]), **json.loads(listed.stdout or "{}")},
        "models": len(models),
        "there": there,
        "tools": {
            name: {"found": t.found, "broken": t.broken, "no_cpu_kernel": t.not_run}
            for name, t in tallies.items()
        },
    }
    if not args.only:
        _save(figures, header, rows)
    mine = tallies[OURS]
    first = all(mine.found[k] >= t.found[k] for t in tallies.values() for k in KINDS)
    return int(not first or bool(mine.broken))


if __name__ == "__main__":
    sys.exit(main())
