"""A lock in a folder, and what `opfuse check` says of what is changed beside it."""

from __future__ import annotations

import json
from pathlib import Path

from opfuse.files import file_hash

LOCK = "opfuse.lock"


def failures(result) -> list[str]:
    return [line for line in result.out.splitlines() if line.startswith("FAILED")]


def edited(place: Path, change) -> None:
    lock = json.loads((place / LOCK).read_text())
    change(lock)
    (place / LOCK).write_text(json.dumps(lock))


def bench_report(
    place: Path, median: float, gpu: str = "NVIDIA H100", engine: str | None = None
) -> Path:
    latency = {"median_us": median, "p90_us": median, "p99_us": median, "runs_per_s": 1.0}
    timed = {"path": "e", "gpu": gpu, "shapes": {"x": [1, 8]}, "graph": latency}
    if engine is not None:
        timed["sha256"] = file_hash(place / engine)
    path = place / "bench.json"
    path.write_text(json.dumps({"engines": [timed]}))
    return path


def built(place: Path, engine: str, content: bytes, model: str = "bert.onnx") -> Path:
    """An engine, and the report of its build beside it, as `opfuse build --report` writes both."""
    path = place / engine
    path.write_bytes(content)
    hashes = {"model": {"sha256": file_hash(place / model)}, "engine": {"sha256": file_hash(path)}}
    path.with_suffix(".json").write_text(json.dumps(hashes))
    return path
