"""Turns an ONNX model into a fused TensorRT engine, and proves that its numbers did not change.

The public API is loaded on first use, so that ``import opfuse`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opfuse.api import bench as bench
    from opfuse.api import build as build
    from opfuse.api import check as check
    from opfuse.api import explain as explain
    from opfuse.api import fuse as fuse
    from opfuse.api import package as package
    from opfuse.api import plugins as plugins
    from opfuse.api import shard as shard
    from opfuse.api import verify as verify
    from opfuse.config import Config as Config
    from opfuse.errors import CheckFailed as CheckFailed
    from opfuse.errors import EngineError as EngineError
    from opfuse.errors import InputError as InputError
    from opfuse.errors import MissingComponent as MissingComponent
    from opfuse.errors import OpfuseError as OpfuseError
    from opfuse.errors import TimeLimit as TimeLimit
    from opfuse.stages.report import Report as Report

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(
        ("bench", "build", "check", "explain", "fuse", "package", "plugins", "shard", "verify"),
        "opfuse.api",
    ),
    "Config": "opfuse.config",
    **dict.fromkeys(
        (
            "CheckFailed",
            "EngineError",
            "InputError",
            "MissingComponent",
            "OpfuseError",
            "TimeLimit",
        ),
        "opfuse.errors",
    ),
    "Report": "opfuse.stages.report",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'opfuse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
