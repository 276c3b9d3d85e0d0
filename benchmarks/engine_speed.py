"""How long engines take on this GPU: TensorRT alone on the original, fused, and with plugins.

``python -m benchmarks.engine_speed``, from the repository root. Models are those of models.tiny
with random fp16 weights, at one fixed shape. Each is built with whichever TensorRT `opfuse build`
picks:

- ``alone``: the original graph, as TensorRT takes it;
- ``leave``: the fused graph, its fused ops as their bodies;
- ``plugins``: the fused graph with every plugin that there is;
- ``plugins:OP+OP`` (by ``--only``): with these plugins alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import opfuse
from benchmarks.measure import print_table, versions, write
from models import tiny
from opfuse import pipeline
from opfuse.progress import Progress
from opfuse.runtime.library import find
from opfuse.stages import library
from opfuse.stages.report import plain

PACKAGES = ("tensorrt-rtx-cu13", "tensorrt-cu13", "cuda-bindings", "onnx", "opfuse")
LAYERS = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "dtype": np.float16}
MODELS: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "bert-base B8 S384": (
        lambda: tiny.bert(vocab=30522, **LAYERS),
        dict.fromkeys(("input_ids", "attention_mask"), (8, 384)),
    ),
    "vit-b16 B32": (
        lambda: tiny.vit(image=224, patch=16, **LAYERS),
        {"pixel_values": (32, 3, 224, 224)},
    ),
    **{
        f"llama 4L h2048 B1 S{length}": (
            lambda: tiny.llama(4, 2048, heads=32, kv_heads=8, intermediate=8192, dtype=np.float16),
            dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (1, length)),
        )
        for length in (2048, 128)
    },
}


def built(model: Path, output: Path, variant: str, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Build one variant of a model; the file that has it."""
    options: dict[str, Any] = {f"{level}_shapes": shapes for level in ("min", "opt", "max")}
    if variant == "alone":
        config = opfuse.Config(model, **options)
        folder = output.parent / f"{output.name}-alone"
        folder.mkdir()
        return pipeline.unfused(model, folder, 0, config, Progress())
    options |= {"prove": False, "lower": "leave" if variant == "leave" else "plugin"}
    _, _, ops = variant.partition(":")
    if not ops:
        opfuse.build(model, output, **options)
        return output
    chosen = library.Library(find(None), frozenset(ops.split("+")))
    with mock.patch.object(library, "choose_library", lambda config: chosen):
        opfuse.build(model, output, **options)
    return output


def main(argv: Sequence[str] | None = None) -> None:
    """Build and time what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--only", nargs="*", default=[], metavar="OP+OP")
    parser.add_argument("--iterations", type=int, default=100)
    args = parser.parse_args(argv)
    variants = ["alone", "leave", "plugins", *(f"plugins:{ops}" for ops in args.only)]
    rows, results = [], {}
    for name in args.models:
        make, shapes = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            model = make().write(Path(folder, "model.onnx"))
            paths = [
                built(model, Path(folder, f"{number}.engine"), variant, shapes)
                for number, variant in enumerate(variants)
            ]
            bench = opfuse.bench(*paths, iterations=args.iterations, opt_shapes=shapes)
        results[name] = dict(zip(variants, plain(bench.engines), strict=True))
        for variant, item, ratio in zip(variants, bench.engines, bench.ratios, strict=True):
            rows.append(
                [
                    name,
                    variant,
                    f"{item.graph.median_us:.1f}",
                    f"{item.eager.median_us:.1f}",
                    f"{ratio:.3f}",
                    f"{item.segments}+{item.plugins}",
                    f"{item.peak_bytes / 1e6:.0f}",
                ]
            )
            print(*rows[-1], sep="\t", flush=True)
    columns = ["model", "variant", "graph us", "eager us", "vs alone", "engines+plugins", "MB"]
    print_table(columns, rows)
    write("engine_speed", {"versions": versions(PACKAGES), "engines": results})


if __name__ == "__main__":
    main()
