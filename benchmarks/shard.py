"""Whether sharded models compute what the models do, and how much memory the cutting takes.

Every model of a folder is cut for every number of ranks, and all ranks are run in step in
onnxruntime (`opfuse shard`, whose own proof this is). Run it from the repository root:
``python -m benchmarks.shard DIR``; with ``--memory`` it measures `opfuse shard` on 3 GB of weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import OPFUSE, Run, print_table, run, versions, write
from benchmarks.memory import MEBIBYTE, write_model
from opfuse.config import Config
from opfuse.errors import OpfuseError
from opfuse.splitting import shard

_PACKAGES = ("opfuse", "onnx", "onnx-graphsurgeon", "onnxruntime", "numpy")


def _row(model: Path, ranks: int, *, vocab: bool) -> dict[str, Any]:
    """What became of one model."""
    row: dict[str, Any] = {"model": model.stem, "ranks": ranks, "shard_vocab": vocab}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "ranks")
        try:
            shards = shard(Config(model, target, tp=ranks, shard_vocab=vocab))
        except OpfuseError as error:
            return {**row, "verdict": f"exit {error.exit_code}", "reason": error.what}
    plan, proof = shards.plan, shards.proof
    assert proof is not None
    kinds = [product.how for product in plan.products]
    return {
        **row,
        "verdict": f"not run: {proof.not_run}" if proof.not_run else "equal",
        "max_rel_err": proof.max_rel_err,
        "tolerance": proof.tolerance,
        "attentions": len(plan.attentions),
        "attentions_whole": sum(item.op == "FlashAttention" for item in plan.left),
        "products": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "collectives": dict(plan.collectives),
        "weights": plan.weight_bytes["rank"] / plan.weight_bytes["model"],
    }


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    head = (row["model"], str(row["ranks"]), row["verdict"])
    if "max_rel_err" not in row:
        return (*head, "", "", "", "")
    cores = f"{row['attentions']} of {row['attentions'] + row['attentions_whole']}"
    sent = " ".join(f"{count} {op}" for op, count in row["collectives"].items() if count)
    return (*head, f"{row['max_rel_err']:.1e}", cores, sent, f"{row['weights']:.0%}")


def measure_memory(folder: Path, gigabytes: float) -> tuple[int, dict[str, Run]]:
    """The peak of `opfuse shard --tp 2` on a Llama of external weights, and their bytes."""
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        model = Path(place, "llama.onnx")
        size = write_model(model, gigabytes)
        for name, options in {"--no-prove": ["--no-prove"], "proof": []}.items():
            output = Path(place, "ranks")
            command = [*OPFUSE, "shard", model, "--tp", "2", "-o", output, "--quiet", *options]
            runs[name] = run(command, sample_memory=True)
            if not runs[name].code:
                plan = json.loads((output / "plan.json").read_text())
                files = sum(path.stat().st_size for path in output.glob("*.data"))
                print(f"{name}: {files / 1e9:.2f} GB of {size / 1e9:.2f}, {plan['collectives']}")
    return size, runs


def _memory(folder: Path, gigabytes: float, limit: int) -> int:
    size, runs = measure_memory(folder, gigabytes)
    rows = [
        (name, f"{(one.peak_bytes or 0) / MEBIBYTE:.0f}", f"{one.seconds:.1f}", f"exit {one.code}")
        for name, one in runs.items()
    ]
    print_table(("shard --tp 2", "peak MiB", "wall s", ""), rows)
    figures = {
        name: {"code": one.code, "peak_mib": round((one.peak_bytes or 0) / MEBIBYTE)}
        for name, one in runs.items()
    }
    facts = {"versions": versions(list(_PACKAGES)), "external_bytes": size, "runs": figures}
    print(write("shard-memory", facts))
    first = runs["--no-prove"]
    over = (first.peak_bytes or 0) >= limit * MEBIBYTE
    return int(any(one.code for one in runs.values()) or over)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes a result; 1 where a model that was cut is not equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="models, or folders of them")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--shard-vocab", action="store_true")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of weights (default: 3)")
    parser.add_argument("--limit", type=int, default=700, help="MiB, --no-prove (default: 700)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args(argv)
    if args.memory:
        return _memory(args.folder, args.gigabytes, args.limit)
    given = [sorted(p.glob("*.onnx")) if p.is_dir() else [p] for p in args.models]
    models = [path for paths in given for path in paths]
    rows = [_row(path, ranks, vocab=args.shard_vocab) for path in models for ranks in args.ranks]
    titles = ("model", "ranks", "", "max rel err", "attentions", "collectives", "weights a rank")
    print_table(titles, [_line(row) for row in rows])
    cut = [row for row in rows if row["verdict"] != "exit 2"]
    equal = sum(row["verdict"] == "equal" for row in cut)
    print(f"{equal} of {len(cut)} equal the original; {len(rows) - len(cut)} cannot be cut")
    print(write("shard", {"versions": versions(list(_PACKAGES)), "models": rows}))
    return int(equal < len(cut))


if __name__ == "__main__":
    sys.exit(main())
