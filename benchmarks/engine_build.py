"""Builds one variant of a network that benchmarks.engine_export wrote.

``python -m benchmarks.engine_build FOLDER VARIANT`` writes ``FOLDER/VARIANT.opfuse`` from
``FOLDER/model.onnx``, and beside it what it consists of as JSON:

- ``alone``: the original graph, as TensorRT takes it;
- ``leave``: the fused graph, its fused ops as their bodies;
- ``plugin``: the fused graph with every plugin that there is;
- ``auto``: what opfuse builds by its table;
- ``unshared``: the same with an engine for every segment, also for those that are alike;
- ``tune``, ``locked``: by measuring, and by the lock of an earlier measurement;
- ``conv``: as ``plugin``, with convolutions over patches left to TensorRT;
- ``only:OP+OP`` and ``not:OP+OP``: with these plugins alone, or with all but these.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import opfuse
from opfuse import lockfile, pipeline
from opfuse.engine import alike, assemble, outline
from opfuse.fusions import patch_product
from opfuse.progress import Progress
from opfuse.runtime.library import describe, find
from opfuse.stages import fuse, library


def path_of(folder: Path, variant: str) -> Path:
    """The file of a variant."""
    return folder / f"{variant.replace(':', '-')}.opfuse"


def build(folder: Path, variant: str, lock: Path) -> dict[str, Any]:
    """Build a variant; its parts, its choices with their reasons, and how long that took.

    The fused model, which a bundle carries for machines that cannot load its engines, is left out:
    forty bundles of a gigabyte are too many for a disk.
    """
    began = time.perf_counter()
    model, output = folder / "model.onnx", path_of(folder, variant)
    if variant == "alone":
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            config = opfuse.Config(model, backend="segmented")
            pipeline.unfused(model, Path(inner), 0, config, Progress()).rename(output)
        return {"parts": "1 + 0", "choices": {}, "seconds": time.perf_counter() - began}
    options: dict[str, Any] = {"backend": "segmented", "prove": False}
    if variant in ("tune", "locked"):
        options |= {"lock": lock, "tune": variant == "tune"}
    elif variant in ("auto", "unshared"):
        options["lock"] = folder / "empty.lock"
        lockfile.write(options["lock"], {"format": lockfile.FORMAT})
    else:
        options["lower"] = "leave" if variant == "leave" else "plugin"
    chosen = mock.patch.object(library, "choose_library", _chosen(variant))
    wider = [f for f in fuse.WIDENINGS if variant != "conv" or f is not patch_product.FUSION]
    fewer = mock.patch.object(fuse, "WIDENINGS", wider)
    small = mock.patch.object(assemble, "_fallback", lambda base_dir: {})
    merged = _each_alone if variant == "unshared" else alike.merged
    with chosen, fewer, small, mock.patch.object(outline, "merged", merged):
        report = opfuse.build(model, output, **options)
    assert report.engine is not None
    choices = Counter(f"{item.op} {item.choice}: {item.reason}" for item in report.lowering)
    words = report.engine.notes[0].split()
    segments, *engines, launches = (word for word in words if word.isdigit())
    return {
        "parts": f"{'/'.join((*engines, segments))} + {launches}",
        "choices": dict(choices),
        "seconds": time.perf_counter() - began,
    }


def _chosen(variant: str) -> Any:
    """What stands in for the choice of the plugin library: the plugins that a variant has."""
    genuine = library.choose_library
    kind, _, ops = variant.partition(":")
    if not ops:
        return genuine
    named = frozenset(ops.split("+"))
    every = frozenset(op.name for op in describe(find(None)).ops)
    kept = named if kind == "only" else every - named
    return lambda config: library.Library(find(None), kept)


def _each_alone(model: Any, segments: Any, *others: Any) -> Any:
    """As `alike.merged`, which merges nothing where it sees one segment at a time."""
    made = [alike.merged(model, [segment], *others) for segment in segments]
    runs = [replace(run, engine=f"engines/{number}") for number, (_, (run,)) in enumerate(made)]
    return [part for (part,), _ in made], runs


def main() -> None:
    """Build what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--lock", type=Path, default=Path("opfuse.lock"))
    args = parser.parse_args()
    facts = build(args.folder, args.variant, args.lock)
    path_of(args.folder, args.variant).with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
