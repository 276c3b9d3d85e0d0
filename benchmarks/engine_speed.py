"""How long engines take on this GPU: TensorRT alone on the original, fused, and with plugins.

``python -m benchmarks.engine_speed``, from the repository root, exports networks from torch
(benchmarks.engine_export), builds each in every variant, and lets the variants take turns:

- ``alone``: the original graph, as TensorRT takes it;
- ``leave``: the fused graph, its fused ops as their bodies;
- ``plugin``: the fused graph with every plugin that there is;
- ``auto``, ``tune``: what opfuse builds by its table and the lock, and after measuring;
- ``only:OP+OP`` and ``not:OP+OP``: with these plugins alone, or with all but these.

One run is one replay of a CUDA graph; a variant whose graph gives other bits than its steps has
no time. The error is that of the first output against torch in fp32, beside that of torch in fp16.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import opfuse
from benchmarks.engine_export import IMPLEMENTATIONS, NETWORKS
from benchmarks.measure import print_table, versions, write
from opfuse import child, pipeline
from opfuse.progress import Progress
from opfuse.runtime.library import describe, find
from opfuse.stages import library

PACKAGES = ("tensorrt-rtx-cu13", "tensorrt-cu13", "cuda-bindings", "onnx", "torch", "opfuse")
ROUNDS = 15


def built(folder: Path, variant: str, lock: Path) -> tuple[Path, str]:
    """Build one variant of the model in the folder; its file, and what it consists of."""
    model, output = folder / "model.onnx", folder / f"{variant.replace(':', '-')}.opfuse"
    options: dict[str, Any] = {"backend": "segmented", "prove": False}
    if variant == "alone":
        inner = folder / "alone"
        inner.mkdir()
        config = opfuse.Config(model, backend="segmented")
        return pipeline.unfused(model, inner, 0, config, Progress()), "1 engine"
    if variant in ("auto", "tune"):
        options |= {"lock": lock, "tune": variant == "tune"}
    else:
        options["lower"] = "leave" if variant == "leave" else "plugin"
    with mock.patch.object(library, "choose_library", chosen(variant)):
        report = opfuse.build(model, output, **options)
    assert report.engine is not None
    return output, report.engine.notes[0]


def chosen(variant: str) -> Any:
    """What stands in for the choice of the plugin library: the plugins that a variant has."""
    genuine = library.choose_library
    kind, _, ops = variant.partition(":")
    if not ops:
        return genuine
    named = frozenset(ops.split("+"))
    every = frozenset(op.name for op in describe(find(None)).ops)
    kept = named if kind == "only" else every - named
    return lambda config: library.Library(find(None), kept)


def error(path: Path, folder: Path) -> float:
    """The relative error of the first output against torch in fp32."""
    from opfuse.runtime import Engine

    inputs = dict(np.load(folder / "inputs.npz"))
    want = np.load(folder / "reference.npz")["want"]
    with Engine.load(path) as engine:
        made = engine.run({value.name: inputs[value.name] for value in engine.inputs})
        found = np.asarray(made[engine.outputs[0].name], np.float64)
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


def measured(
    name: str, implementation: str, variants: Sequence[str], layers: int, lock: Path
) -> dict[str, Any]:
    """Export, build, and time one network; the figures of each variant."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "benchmarks.engine_export", scratch, name, implementation]
        subprocess.run([*command, "--layers", str(layers)], check=True)
        made = {variant: built(folder, variant, lock) for variant in variants}
        paths = {variant: path for variant, (path, _) in made.items()}
        points: dict[str, Any] = {"opt": {}}
        times = child.run("opfuse.runtime.tuning:compare", (paths, points, ROUNDS, 0))["opt"]
        half = float(np.load(folder / "reference.npz")["half"])
        return {
            variant: {
                "median_us": float(np.median(times[variant])) if times.get(variant) else None,
                "error": error(path, folder),
                "torch_fp16_error": half,
                "parts": made[variant][1],
            }
            for variant, path in paths.items()
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Build and time what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--exports", nargs="+", default=["sdpa"], choices=IMPLEMENTATIONS)
    parser.add_argument("--variants", nargs="+", default=["alone", "plugin", "tune"])
    parser.add_argument("--layers", type=int, default=4, help="of Llama (default: 4)")
    parser.add_argument("--lock", type=Path, default=Path("opfuse.lock"))
    args = parser.parse_args(argv)
    rows, results = [], {}
    for name in args.networks:
        for export in args.exports:
            found = measured(name, export, args.variants, args.layers, args.lock)
            results[f"{name} {export}"] = found
            for variant, item in found.items():
                us = "-" if item["median_us"] is None else f"{item['median_us']:.1f}"
                shown = (f"{item['error']:.1e}", f"{item['torch_fp16_error']:.1e}")
                rows.append([name, export, variant, us, *shown, item["parts"]])
                print(*rows[-1], sep="\t", flush=True)
    print_table(["network", "export", "variant", "us", "error", "torch fp16", "parts"], rows)
    write("engine_speed", {"versions": versions(PACKAGES), "engines": results})


if __name__ == "__main__":
    main()
