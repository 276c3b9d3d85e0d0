"""Writes what a check found in the format of a file's suffix."""

from __future__ import annotations

import json
from pathlib import Path

from opfuse import formats
from opfuse.files import write_atomically
from opfuse.gate.result import Check
from opfuse.stages.report import plain


def write(check: Check, path: Path) -> None:
    """Write the check as .json, .txt, .html, .md, .sarif, or .xml.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, _text(check, path.suffix).encode(errors="backslashreplace"))


def annotated(check: Check) -> str:
    """The check as annotations of a GitHub runner, a line for each."""
    from opfuse.formats.finding import of_check
    from opfuse.formats.github import annotated as told

    return "".join(f"{line}\n" for line in told(of_check(plain(check.as_dict()), _lock(check))))


def _lock(check: Check) -> str:
    """The text of the lock, for the lines in it."""
    return Path(check.lock).read_text(errors="replace")


def _text(check: Check, suffix: str) -> str:
    from opfuse.stages.check_text import check_as_text, verdict

    facts = plain(check.as_dict())
    if suffix == ".json":
        return json.dumps(facts, indent=1) + "\n"
    if suffix == ".txt":
        return check_as_text(check)
    return formats.of_check(facts, suffix, _lock(check), verdict(check, check.lock))
