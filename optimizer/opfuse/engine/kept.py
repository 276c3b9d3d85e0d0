"""Engines and kernel timings in the cache: what they are looked up by, taken out, and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

import opfuse
from opfuse.cache import ENVIRONMENT, Cache, check_folder
from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.engine.backend import Backend, EngineInfo
from opfuse.files import Pending, file_hash
from opfuse.graph.protos import all_tensors
from opfuse.progress import Progress

_ENGINES, _TIMING = "engines", "timing"


def open_cache(config: Config) -> Cache | None:
    """The cache that the options or $OPFUSE_CACHE name; None where none is wanted.

    Raises:
        InputError: It is no folder.
    """
    named = config.cache or os.environ.get(ENVIRONMENT)
    if not named or not config.use_cache:
        return None
    check_folder(Path(named))
    return Cache(Path(named), config.cache_size)


def engine_key(
    model: ModelProto, base_dir: Path, config: Config, backend: Backend, library: Path | None
) -> str | None:
    """The hash of all that decides what the engine is; None where that cannot be told.

    Args:
        model: What TensorRT gets; its weights are in it, or in files of ``base_dir``.
        base_dir: Holds those files, and ``fused.onnx`` with its own, which go into bundles.
        config: Shapes, cuts, and whether the library is embedded.
        backend: With the version of its TensorRT, and the GPU of this machine.
        library: The plugin library; None where the model has no plugin node.
    """
    if not backend.version():
        return None
    facts = {
        "made_by": _made_by(backend),
        "model": hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        "files": {path.name: file_hash(path) for path in sorted(_files(model, base_dir))},
        "library": None if library is None else file_hash(library),
        "embedded": config.embed_plugins,
        "around_attention": config.lower != "auto",
        "shapes": [
            {name: list(shape) for name, shape in level.items()}
            for level in (config.min_shapes, config.opt_shapes, config.max_shapes)
        ],
    }
    return _hash(facts)


def _files(model: ModelProto, base_dir: Path) -> set[Path]:
    """What an engine or a bundle is made from beside the model itself."""
    entries = [entry for tensor in all_tensors(model) for entry in tensor.external_data]
    places = {base_dir / entry.value for entry in entries if entry.key == "location"}
    return places | set(base_dir.glob("fused*"))


def fetch(
    cache: Cache, key: str, output: Path, accept: Callable[[EngineInfo], None] | None
) -> EngineInfo | None:
    """Writes the engine of an entry to ``output``; None where there is no such entry."""
    with Pending(output.parent) as pending:
        facts = cache.get(_ENGINES, key, pending.file)
        if facts is None:
            return None
        info = EngineInfo.from_dict(facts)
        if accept is not None:
            accept(info)
        pending.publish(output)
    note = f"the engine is from the cache ({key[:12]}): TensorRT built nothing"
    return replace(info, notes=(*info.notes, note), cache={"hit": True, "key": key})


def keep(cache: Cache, key: str, info: EngineInfo, output: Path) -> EngineInfo:
    """Puts a new engine into the cache; what is the matter there is noted and no failure."""
    kept = cache.put(_ENGINES, key, asdict(info), output, info.sha256)
    facts = {"hit": False, "kept": kept, "key": key}
    return replace(info, notes=(*info.notes, *cache.notes), cache=facts)


def build(
    cache: Cache | None,
    key: str | None,
    config: Config,
    make: Callable[[], EngineInfo],
    accept: Callable[[EngineInfo], None] | None,
    progress: Progress,
) -> EngineInfo:
    """The engine at ``config.output``, from the cache or made and kept there."""
    output = config.output
    if cache is None or key is None or output is None:
        return make()
    waiting = "another opfuse builds the same engine"
    with cache.making(key, config.time_limit, lambda: progress.step(waiting)):
        info = fetch(cache, key, output, accept)
        return keep(cache, key, make(), output) if info is None else info


def fetch_timings(cache: Cache, backend: Backend, target: Path) -> None:
    """Writes the kernel timings of this TensorRT and GPU to ``target``, if there are any."""
    with target.open("w+b") as file:
        known = cache.get(_TIMING, _hash(_made_by(backend)), file)
    if known is None:
        target.unlink()


def keep_timings(cache: Cache, backend: Backend, timings: Path) -> None:
    """Keeps kernel timings. Of two builds at once those of the later one stay."""
    cache.put(_TIMING, _hash(_made_by(backend)), {}, timings, file_hash(timings))


def _made_by(backend: Backend) -> dict[str, Any]:
    """What builds: an engine of the same model from another one of these is another engine."""
    here = gpu.current()
    return {
        "opfuse": opfuse.__version__,
        "sources": _sources(),
        "backend": backend.name,
        "tensorrt": backend.version(),
        "gpu": None if here is None else asdict(here),
    }


def _sources() -> str:
    """The hash of this package: in a working copy the version says little."""
    digest = hashlib.sha256()
    for folder in sorted(set(opfuse.__path__)):
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
