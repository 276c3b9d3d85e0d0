"""Chooses the backend and says why."""

from __future__ import annotations

from dataclasses import dataclass

from opfuse.engine.backend import Backend
from opfuse.engine.segmented import Segmented
from opfuse.engine.tensorrt import TensorRt
from opfuse.engine.tensorrt_rtx import TensorRtRtx
from opfuse.errors import MissingComponent

# auto takes the first that is usable
_BACKENDS: tuple[Backend, ...] = (TensorRt(), TensorRtRtx(), Segmented())


@dataclass(frozen=True)
class Choice:
    """A backend that is usable here, and the reason for it in words."""

    backend: Backend
    why: str


def select(name: str) -> Choice:
    """The backend called ``name``, or for "auto" the best that this machine has.

    Raises:
        MissingComponent: It is not usable here; with "auto", none is.
    """
    if name == "auto":
        return _best()
    for backend in _BACKENDS:
        if backend.name == name:
            missing = backend.lacks()
            if missing is not None:
                raise MissingComponent(*missing)
            return Choice(backend, "asked for")
    raise MissingComponent(
        f"the {name} backend is not in this release",
        f"use one of {', '.join(backend.name for backend in _BACKENDS)}",
    )


def _best() -> Choice:
    passed: list[tuple[str, str, str]] = []
    for backend in _BACKENDS:
        missing = backend.lacks()
        if missing is None:
            skipped = "".join(f"; not {name}: {what}" for name, what, _ in passed)
            return Choice(backend, f"the first usable one{skipped}")
        passed.append((backend.name, *missing))
    raise MissingComponent(
        "no TensorRT can build here: " + "; ".join(f"{name}: {what}" for name, what, _ in passed),
        passed[-1][2],
    )
