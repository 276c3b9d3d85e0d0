"""What one run found, as the sections of a lock."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, ValueInfoProto

from opfuse.config import Config
from opfuse.files import file_hash
from opfuse.graph.external import model_hash
from opfuse.graph.match import NearMiss
from opfuse.graph.protos import type_name
from opfuse.precision.counted import casts, delicate, epsilons, products

if TYPE_CHECKING:
    from opfuse.precision.result import Precision

_STEP = 5.0  # between the two bounds of an error
_ROOM = 2.0  # between an error that is found and the bound that is written for it
_LEVELS = ("min_shapes", "opt_shapes", "max_shapes")
_PLAIN = ("precision", "io_precision", "prove", "rtol", "seed")


def model(path: Path, proto: ModelProto, base_dir: Path) -> dict[str, Any]:
    """Which model it is: its file by name and content, its inputs and outputs."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {
        "file": path.name,
        "sha256": model_hash(path, proto, base_dir),
        "inputs": {i.name: _value(i) for i in proto.graph.input if i.name not in weights},
        "outputs": {item.name: _value(item) for item in proto.graph.output},
    }


def _value(item: ValueInfoProto) -> str:
    """A type and a shape; names of sizes differ between exports of one model."""
    kind = item.type.tensor_type
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in kind.shape.dim]
    return f"{type_name(kind.elem_type)} [{', '.join(dims)}]"


def options(config: Config, folder: Path) -> dict[str, Any]:
    """The options that decide what is fused, proven, and converted.

    Args:
        config: The options of the run.
        folder: Of the lock; files are named from there.
    """
    found: dict[str, Any] = {name: getattr(config, name) for name in _PLAIN}
    found["calibrate"] = [
        {"file": os.path.relpath(path, folder).replace(os.sep, "/"), "sha256": file_hash(path)}
        for path in config.calibrate
    ]
    for level in _LEVELS:
        found[level] = {name: list(shape) for name, shape in getattr(config, level).items()}
    return found


def as_arguments(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `options` wrote, as arguments of Config."""
    found = {name: section[name] for name in _PLAIN if name in section}
    if "calibrate" in section:
        found["calibrate"] = tuple(
            Path(os.path.normpath(folder / item.get("file", ""))) for item in section["calibrate"]
        )
    for level in _LEVELS:
        if level in section:
            found[level] = {name: tuple(shape) for name, shape in section[level].items()}
    return found


def fusions(counts: Mapping[str, int], misses: Iterable[NearMiss]) -> dict[str, Any]:
    """How many of each kind there are, and which nodes block others of it."""
    blocked: dict[str, list[str]] = {}
    for miss in misses:
        blocked.setdefault(miss.kind, []).append(miss.node)
    kinds = sorted(kind for kind in {*counts, *blocked} if counts.get(kind) or kind in blocked)
    return {
        kind: {"fused": counts.get(kind, 0), "nearly": sorted(blocked.get(kind, ()))}
        for kind in kinds
    }


def proof(found: Any, tolerance: float) -> dict[str, Any] | None:
    """How far the proof came, and a bound for its errors."""
    if found is None:
        return None
    return {
        "failed": len(found.failed),
        "whole": whole_model(found),
        "max_rel_err": bound(found.max_rel_err, tolerance),
    }


def whole_model(found: Any) -> bool:
    """Whether the proof compared the whole model."""
    return found.whole is not None and not found.whole.not_run


def bound(error: float, tolerance: float) -> float:
    """A bound for an error: a fifth of the tolerance, the tolerance, five times it, ...

    Two processors round differently, so an error's digits are not the same on both, but its bound
    is: it is twice the error or more. Half precision has errors above the tolerance that are
    excused, since the original is as far from itself in fp32.
    """
    steps = range(-1, 30) if math.isfinite(error) else ()
    found = (tolerance * _STEP**step for step in steps if error * _ROOM <= tolerance * _STEP**step)
    return next(found, tolerance)


def precision(fused: Any, functions: Any, found: Precision | None, tolerance: float) -> Any:
    """What computes in which type.

    Args:
        fused: The fused graph with its facts.
        functions: The definitions of the fused ops, by name.
        found: The conversion; None where none was asked for.
        tolerance: Of the type that it converts to.
    """
    types = {
        "delicate": delicate(fused.graph, fused.facts),
        "epsilons": epsilons(fused.graph),
    }
    if found is None:
        return {
            **types,
            "products": products(fused.graph, fused.facts, functions),
            "casts": casts(fused.graph, fused.facts),
        }
    errors = [item.rms for item in found.comparison.outputs.values()] if found.comparison else []
    return {
        **types,
        "products": {name: count for name, count in found.products.items() if count},
        "casts": found.casts,
        "kept": dict(sorted(Counter(item.op for item in found.kept).items())),
        "max_rms": bound(max(errors), tolerance) if errors else None,
    }


def rounded_up(value: float, slack: float) -> float:
    """A bound for a measurement: so much more, and three digits."""
    most = value * (1 + slack)
    step = 10.0 ** (math.floor(math.log10(most)) - 2) if most > 0 else 1.0
    return round(math.ceil(round(most / step, 6)) * step, 9)
