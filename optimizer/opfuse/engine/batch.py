"""Builds several small engines in one child process; one that fails leaves the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from opfuse.errors import EngineError


def build(function: str, arguments: Sequence[Any]) -> list[Any]:
    """What a backend's function returns for each argument, or the first line of its error."""
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    found: list[Any] = []
    for argument in arguments:
        try:
            found.append(call(argument))
        except EngineError as error:
            found.append(error.what.splitlines()[0])
    return found
