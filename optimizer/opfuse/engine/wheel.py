"""Which TensorRT is installed, found without importing it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec

WHEELS = {name: (f"{name}-cu13", f"{name}-cu12", name) for name in ("tensorrt", "tensorrt-rtx")}
"""The distributions of each TensorRT, the usual one first."""


def lacks(
    title: str, module: str, wheels: Iterable[str], oldest: tuple[int, int], install: str
) -> tuple[str, str] | None:
    """What is missing and how to get it; None where ``module`` is there and new enough."""
    wanted = ".".join(map(str, oldest))
    if find_spec(module) is None:
        return f"{title} is not installed", install
    version = installed(wheels)
    if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < oldest:
        return f"{title} {version} is installed, opfuse needs {wanted} or newer", install
    return None


def installed(wheels: Iterable[str]) -> str:
    """The version of the first of these distributions that is installed, or an empty string."""
    for name in wheels:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def versions() -> dict[str, str]:
    """The version of each TensorRT that is installed, by the name of its backend."""
    found = {name: installed(wheels) for name, wheels in WHEELS.items()}
    return {name: version for name, version in found.items() if version}
