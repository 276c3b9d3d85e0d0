"""Writes what a check found in the format of a file's suffix."""

from __future__ import annotations

import json
from pathlib import Path

from opfuse import formats
from opfuse.files import write_atomically
from opfuse.gate.result import Check
from opfuse.stages.report import plain


def write(check: Check, path: Path, lock: str) -> None:
    """Write the check as .json, .txt, .html, .md, .sarif, or .xml; ``lock`` is the lock's text.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, _text(check, path.suffix, lock).encode(errors="backslashreplace"))


def _text(check: Check, suffix: str, lock: str) -> str:
    from opfuse.stages.check_text import check_as_text, verdict

    facts = plain(check.as_dict())
    if suffix == ".json":
        return json.dumps(facts, indent=1) + "\n"
    if suffix == ".txt":
        return check_as_text(check)
    return formats.of_check(facts, suffix, lock, verdict(check, check.lock))
