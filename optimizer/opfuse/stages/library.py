"""Chooses the plugin library for a build, and describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opfuse.config import Config
from opfuse.errors import MissingComponent
from opfuse.runtime.library import LibraryInfo, describe, find


@dataclass(frozen=True)
class Library:
    """The library that a build may take plugins from; without a path there is none."""

    path: Path | None = None
    ops: frozenset[str] = frozenset()


def choose_library(config: Config) -> Library:
    """Finds the library where the options ask for plugins.

    Raises:
        MissingComponent: The library was asked for, by its path or by ``--lower plugin``, and is
            not there; or it is there and cannot be used.
    """
    if config.lower in ("leave", "native"):
        return Library()
    try:
        path = find(config.plugin_library)
    except MissingComponent:
        if config.lower == "plugin" or config.plugin_library is not None:
            raise
        return Library()
    return Library(path, frozenset(op.name for op in describe(path).ops))


def describe_library(explicit: Path | None) -> LibraryInfo:
    """What the library holds.

    Raises:
        MissingComponent: There is none, or it is none of this version.
    """
    return describe(find(explicit))


def library_version() -> str:
    """Version and path of the library, or what is the matter with it."""
    try:
        path = find()
        return f"{describe(path).version} ({path})"
    except MissingComponent as error:
        return error.what
