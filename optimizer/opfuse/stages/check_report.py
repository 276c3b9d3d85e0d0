"""Writes what a check found in the format of a file's suffix."""

from __future__ import annotations

from pathlib import Path

from opfuse.files import write_atomically
from opfuse.gate.result import Check
from opfuse.stages.report import write_json


def write(check: Check, path: Path) -> None:
    """Write the check as .json or .txt.

    Raises:
        InputError: The file cannot be written.
    """
    if path.suffix == ".json":
        write_json(check.as_dict(), path)
        return
    from opfuse.stages.check_text import check_as_text

    write_atomically(path, check_as_text(check).encode(errors="backslashreplace"))
