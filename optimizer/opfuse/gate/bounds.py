"""Limits of an engine's size and time: they belong to the user, who may edit them in the lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opfuse.errors import InputError
from opfuse.gate.pinned import rounded_up
from opfuse.gate.result import FAILED, SKIPPED, Expectation

_SHORT = 12  # digits of a hash
SLACK_TIME, SLACK_BYTES = 0.10, 0.05
"""What a new limit allows above the measurement: clocks and compilers vary by so much."""


@dataclass(frozen=True)
class Timed:
    """The median of an engine's runs by CUDA graph, in microseconds, on a GPU at some shapes.

    ``sha256`` is that of the engine's file; empty in reports of older versions.
    """

    median_us: float
    gpu: str
    shapes: Mapping[str, list[int]]
    sha256: str = ""


@dataclass(frozen=True)
class Built:
    """An engine file.

    Attributes:
        path: The file.
        bytes: Its size.
        sha256: Its hash.
        model: That of the model it was built from; empty where nothing tells it.
        tensorrt, library: What it was built with, where it is a bundle.
    """

    path: Path
    bytes: int
    sha256: str
    model: str
    tensorrt: tuple[str, str] = ("", "")
    library: str = ""


def read_bench(path: Path) -> Timed:
    """The first engine of what ``opfuse bench --report FILE.json`` wrote.

    Raises:
        InputError: It is no such file.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"bench report {path} is no file", _BENCH)
        return timed(json.loads(path.read_bytes())["engines"][0])
    except OSError as error:
        raise InputError(f"bench report {path} cannot be read: {error.strerror}", _BENCH) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is no report of opfuse bench", _BENCH) from None


_BENCH = "write one on a machine with a GPU: opfuse bench ENGINE --report bench.json"


def timed(engine: Mapping[str, Any]) -> Timed:
    """One engine of a bench report.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    shapes = {str(name): [int(d) for d in shape] for name, shape in engine["shapes"].items()}
    median = float(engine["graph"]["median_us"])
    if not 0 < median < float("inf"):
        raise ValueError(median)
    return Timed(median, str(engine["gpu"]), shapes, str(engine.get("sha256", "")))


def updated(old: Mapping[str, Any], time: Timed | None, built: Built | None) -> dict[str, Any]:
    """The limits with new ones for what was measured; the others stay."""
    new = dict(old)
    if time is not None:
        most = rounded_up(time.median_us, SLACK_TIME)
        new["latency_us"] = {"median": most, "gpu": time.gpu, "shapes": dict(time.shapes)}
    if built is not None:
        new["engine_bytes"] = int(built.bytes * (1 + SLACK_BYTES))
    return new


def judge(
    locked: Mapping[str, Any], time: Timed | None, built: Built | None
) -> Iterator[Expectation]:
    """Yield one expectation for each limit; one that nothing was measured for is skipped."""
    if (most := locked.get("engine_bytes")) is not None:
        yield _size(most, built)
    if (limit := locked.get("latency_us")) is not None:
        yield _latency(limit, time)


def _size(most: int, built: Built | None) -> Expectation:
    if built is None:
        return Expectation("bounds", "engine_bytes", SKIPPED, "no engine was given: --engine")
    if built.bytes <= most:
        return Expectation("bounds", "engine_bytes")
    text = f"{built.path} has {built.bytes} bytes, the lock allows {most}"
    return Expectation("bounds", "engine_bytes", FAILED, text)


def _latency(limit: Mapping[str, Any], time: Timed | None) -> Expectation:
    if time is None:
        text = "nothing was timed: give --bench REPORT, or --engine on a machine with a GPU"
        return Expectation("bounds", "latency_us", SKIPPED, text)
    for what, was, now in (
        ("GPU", limit["gpu"], time.gpu),
        ("shapes", limit["shapes"], time.shapes),
    ):
        if was != now:
            text = f"timed with other {what} than the lock's: {was} -> {now}"
            return Expectation("bounds", "latency_us", FAILED, text, "time it as the lock says")
    if time.median_us <= limit["median"]:
        return Expectation("bounds", "latency_us")
    text = f"a run takes {time.median_us:.1f} us, the lock allows {limit['median']:g} us"
    return Expectation("bounds", "latency_us", FAILED, text)


def ties(
    model: Path, sha256: str, time: Timed | None, built: Built | None
) -> Iterator[Expectation]:
    """Yield whether the engine was built from the model, and the time is that engine's."""
    if built is not None and not built.model:
        text = (
            f"nothing tells which model {built.path} was built from: opfuse build --report "
            f"{built.path.with_suffix('.json')} does, and leaves it beside the engine"
        )
        yield Expectation("bounds", "engine", SKIPPED, text)
    elif built is not None and built.model != sha256:
        text = f"{built.path} was built from another model than {model}: SHA-256 "
        text += f"{built.model[:_SHORT]}... and {sha256[:_SHORT]}..."
        yield Expectation("bounds", "engine", FAILED, text, "build it again")
    elif built is not None:
        yield Expectation("bounds", "engine")
    if time is None:
        return
    if built is None or not time.sha256:
        text = (
            "nothing tells which engine was timed: give --engine, and a report of its opfuse bench"
        )
        yield Expectation("bounds", "timed", SKIPPED, text)
    elif time.sha256 != built.sha256:
        text = f"another engine than {built.path} was timed: SHA-256 "
        text += f"{time.sha256[:_SHORT]}... and {built.sha256[:_SHORT]}..."
        yield Expectation("bounds", "timed", FAILED, text, "time it again: opfuse bench")
    else:
        yield Expectation("bounds", "timed")


def bundle(locked: Mapping[str, Any], built: Built) -> Iterator[Expectation]:
    """Yield whether a bundle was built with the TensorRT and the plugin library of the lock."""
    module, version = built.tensorrt
    wanted = locked.get("tensorrt", {}).get(module.replace("_", "-"))
    if wanted is not None and module and version != wanted:
        text = f"{built.path} was built with {module} {version}, the lock has {wanted}"
        yield Expectation("tensorrt", "engine", FAILED, text, "build it again")
    library = (locked.get("plugins") or {}).get("sha256")
    if built.library and library is not None and built.library != library:
        text = f"{built.path} was built with another plugin library than the locked one"
        yield Expectation("plugins", "engine", FAILED, text, "build it again")
