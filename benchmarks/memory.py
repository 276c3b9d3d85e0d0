"""How much memory `opfuse fuse` takes on a model whose weights lie outside the file.

The figure is the largest sum of resident memory over the process tree. Run it from the repository
root: ``python -m benchmarks.memory``. It writes the model twice over: 3 GB in, 3 GB out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from benchmarks.measure import OPFUSE, Run, print_table, run, versions, write
from models.tiny import llama

MEBIBYTE = 1 << 20


def write_model(path: Path, gigabytes: float) -> int:
    """Writes a Llama of about that many 10**9 bytes of weights, streaming; returns the bytes."""
    hidden, intermediate, vocab = 2048, 5632, 32000
    attention = hidden * (hidden * 2 + 512 * 2)
    per_layer = 4 * (attention + 3 * hidden * intermediate)
    layers = max(1, round((gigabytes * 1e9 - 8 * vocab * hidden) / per_layer))
    sizes = {"heads": 16, "kv_heads": 4, "intermediate": intermediate, "vocab": vocab}
    llama(layers, hidden=hidden, **sizes).write(path, external=True)
    return path.with_name(path.name + ".data").stat().st_size


def _external_bytes(path: Path) -> int:
    """The bytes that a written model keeps outside its file."""
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum((path.parent / place).stat().st_size for place in places)


def _row(name: str, one: Run, limit: int) -> tuple[str, ...]:
    peak = one.peak_bytes or 0
    verdict = f"exit {one.code}: {one.last_line[:80]}" if one.code else ""
    if not one.code:
        verdict = "ok" if peak < limit else f"over {limit // MEBIBYTE} MiB"
    return name, f"{peak / MEBIBYTE:.0f}", f"{one.seconds:.1f}", verdict


def main() -> int:
    """Measures both ways; 1 where one failed or, without proof, took more than the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of weights (default: 3)")
    parser.add_argument("--limit", type=int, default=700, help="MiB, --no-prove (default: 700)")
    parser.add_argument("--folder", type=Path, help="for the models (default: a temporary one)")
    args = parser.parse_args()
    ways = {
        "fuse --no-prove": ["--no-prove"],
        "fuse": [],
        "fuse --fp16": ["--fp16", "--no-prove"],
    }
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model = Path(folder, "llama.onnx")
        size = write_model(model, args.gigabytes)
        for name, options in ways.items():
            output = Path(folder, "fused.onnx")
            command = [*OPFUSE, "fuse", model, "-o", output, "--quiet", *options]
            runs[name] = run(command, sample_memory=True)
            least = 0.45 if "fp16" in name else 0.9
            if not runs[name].code and _external_bytes(output) < least * size:
                raise SystemExit(f"{name}: the fused model lost weights")
    limit = args.limit * MEBIBYTE
    print(f"{size / 1e9:.2f} GB of external weights")
    rows = [_row(name, one, limit) for name, one in runs.items()]
    print_table(("command", "peak MiB", "wall s", ""), rows)
    figures: dict[str, Any] = {
        name: {
            "code": one.code,
            "peak_mib": round((one.peak_bytes or 0) / MEBIBYTE),
            "seconds": round(one.seconds, 1),
        }
        for name, one in runs.items()
    }
    packages = versions(["opfuse", "onnx", "onnx-graphsurgeon", "onnxruntime", "numpy"])
    print(write("memory", {"versions": packages, "external_bytes": size, "runs": figures}))
    first = next(iter(runs.values()))
    return int(any(one.code for one in runs.values()) or (first.peak_bytes or 0) >= limit)


if __name__ == "__main__":
    sys.exit(main())
