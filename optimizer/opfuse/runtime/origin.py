"""The report of an engine's build: it lies beside the engine, and its hashes say whether it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opfuse.errors import InputError
from opfuse.files import file_hash


def report_of(engine: Path, named: Path | None, fix: str = "") -> dict[str, Any] | None:
    """Return the report of the build of this very engine.

    Args:
        engine: The file.
        named: The report; None takes the one beside the engine, which may be another's: then, as
            where there is none, there is no report.
        fix: What to do about a report that is named and is another's.

    Raises:
        InputError: The report that is named is none, or of another engine.
    """
    place = named or engine.with_suffix(".json")
    try:
        facts = json.loads(place.read_bytes())
        digest = facts["engine"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if named is None:
            return None
        reason = error.strerror if isinstance(error, OSError) else "it has no engine"
        raise InputError(f"{named} is no report of a build: {reason}", fix) from None
    if digest == file_hash(engine):
        return dict(facts)
    if named is None:
        return None
    raise InputError(f"{named} is the report of another engine than {engine}", fix)


def model_of(engine: Path) -> str:
    """The SHA-256 of the model that an engine was built from; empty where nothing tells it."""
    try:
        return str((report_of(engine, None) or {})["model"]["sha256"])
    except (KeyError, TypeError):
        return ""
