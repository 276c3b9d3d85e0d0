"""The file opfuse.lock: one JSON object whose sections belong to different commands.

It is committed by users, so equal contents are equal bytes: keys are sorted, and nothing in it
depends on the day, the machine, or the folder.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from opfuse.errors import InputError
from opfuse.files import write_atomically

FORMAT = 1
NAME = "opfuse.lock"

_LARGEST = 64 << 20  # bytes; the lock of a large model has thousands
_RESTORE = "restore it from version control, or delete it and write a new one"


def read(path: Path) -> dict[str, Any]:
    """Read a lock, whatever its sections are.

    Raises:
        InputError: It is missing, cannot be read, is no lock, or has a newer format.
    """
    text = _text(path)
    try:
        lock = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        conflict = any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines())
        hint = "resolve the merge conflict in it" if conflict else _RESTORE
        raise InputError(f"{path} is no lock: {error}", hint) from None
    if not isinstance(lock, dict) or type(lock.get("format")) is not int:
        raise InputError(f"{path} is no lock: it has no number 'format'", _RESTORE)
    if lock["format"] != FORMAT:
        raise InputError(
            f"{path} has format {lock['format']}, this opfuse reads format {FORMAT}",
            "install the opfuse that wrote it, or delete it and write a new one",
        )
    return lock


def require_named(path: Path) -> None:
    """Refuse a lock that is not there, unless it has the usual name and so was not asked for.

    Raises:
        InputError: As for `read`.
    """
    if path != Path(NAME) or path.exists():
        read(path)


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise InputError(f"{path} is no lock: it is no file, or a huge one", "name the lock")
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise InputError(
            f"there is no lock {path}",
            "write one, and commit it: opfuse check MODEL --lock LOCK --update, or on a GPU "
            "opfuse build MODEL --lock LOCK --tune",
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no lock: it is not text", _RESTORE) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"lock {path} cannot be read: {reason}", "make it readable") from None


def merged(lock: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """The lock with these sections in place of its own of the same names; the others stay."""
    return {**lock, **sections, "format": FORMAT}


def as_text(lock: Mapping[str, Any]) -> str:
    """The text of the file."""
    return json.dumps(lock, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write(path: Path, lock: Mapping[str, Any]) -> None:
    """Write a lock, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, as_text(lock).encode())


def line_of(text: str, *keys: str) -> int:
    """The number of the line of the text on which the innermost of ``keys`` that is there stands.

    It is 1 where the first is missing already.
    """
    place = 0
    for key in keys:
        name = f"{json.dumps(key)}:"
        # A section may be called as a field of another; as we write it, it is one step in.
        found = text.find(f"\n {name}") + 1 if not place else 0
        found = found or text.find(name, place)
        if found < 0:
            break
        place = found
    return text.count("\n", 0, place) + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a name that comes twice would silently hide what it had first."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is in it twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
