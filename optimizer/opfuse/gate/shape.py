"""What the sections of a lock look like, so that a slip of the hand in one is told, not obeyed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opfuse.errors import InputError

_NUMBER = (int, float)
_SHAPES = {"*": [int]}
_SECTIONS: Mapping[str, Any] = {
    "opfuse": str,
    "model": {"file": str, "sha256": str, "inputs": {"*": str}, "outputs": {"*": str}},
    "options": {
        "precision": str,
        "io_precision": str,
        "calibrate": [{"file": str, "sha256": str}],
        "prove": bool,
        "rtol": (*_NUMBER, None),
        "seed": int,
        "min_shapes": _SHAPES,
        "opt_shapes": _SHAPES,
        "max_shapes": _SHAPES,
    },
    "fusions": {"*": {"fused": int, "nearly": [str]}},
    "proof": ({"failed": int, "whole": bool, "max_rel_err": _NUMBER}, None),
    "outputs": {
        "computed_in": str,
        "rtol": _NUMBER,
        "not_run": str,
        "inputs": {"*": {"shape": [int], "sha256": str}},
        "values": {
            "*": {"dtype": str, "shape": [int], "finite": int, "rms": _NUMBER,
                  "projections": [_NUMBER]}
        },
        "weights": {"*": str},
    },
    "precision": {
        "products": {"*": int},
        "delicate": {"*": {"*": int}},
        "epsilons": {"*": int},
        "casts": int,
        "kept": {"*": int},
        "max_rms": (*_NUMBER, None),
    },
    "plugins": ({"version": str, "sha256": str}, None),
    "tensorrt": {"*": str},
    "bounds": {
        "engine_bytes": int,
        "latency_us": {"median": _NUMBER, "gpu": str, "shapes": _SHAPES},
    },
}  # fmt: skip
SECTIONS = tuple(_SECTIONS)
"""The sections that are ours, in the order in which they are told."""

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def check_shape(lock: Mapping[str, Any], path: object) -> None:
    """Refuse a lock in which one of our sections has what does not belong there.

    A field of a section that is not there is not pinned; an entry in a field has all of its own.
    What is there beside them belongs to somebody else.

    Raises:
        InputError: There is one; the message has its place.
    """
    for section, wanted in _SECTIONS.items():
        if section in lock:
            _check(lock[section], wanted, section, path)


def _check(value: object, wanted: Any, place: str, path: object) -> None:
    if isinstance(wanted, tuple):
        kinds = [kind for kind in wanted if isinstance(kind, type)]
        if (None in wanted and value is None) or any(_is(value, kind) for kind in kinds):
            return
        wanted = [kind for kind in wanted if kind is not None][-1]
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise _refusal(path, place, "an object")
        missing = [name for name in wanted if name != "*" and name not in value]
        if missing and ("." in place or "[" in place):
            raise _refusal(path, f"{place}.{missing[0]}", "there")
        for name, item in value.items():
            if name in wanted or "*" in wanted:
                _check(item, wanted.get(name, wanted.get("*")), f"{place}.{name}", path)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise _refusal(path, place, "a list")
        for index, item in enumerate(value):
            _check(item, wanted[0], f"{place}[{index}]", path)
    elif not _is(value, wanted):
        raise _refusal(path, place, _WORDS[wanted])


def _is(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _refusal(path: object, place: str, wanted: str) -> InputError:
    return InputError(
        f"{path}: {place} is not {wanted}",
        "correct it, or write it again: opfuse check MODEL --update",
    )
