"""Loads and runs what opfuse builds: `Engine`, the plugin library, and its C ABI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opfuse.runtime.engine import Engine as Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module 'opfuse.runtime' has no attribute {name!r}")
    from opfuse.runtime.engine import Engine

    return Engine
