"""Output files: checked before the work, written beside their place, and moved there when whole."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

from opfuse.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output(path: Path) -> None:
    """Refuses an output path that cannot be written, before any work is done for it.

    Raises:
        InputError: The folder is missing or read-only, or the path is no regular file.
    """
    if path == Path("-"):
        raise InputError("output - is no file name, and nothing goes to stdout", "name a file")
    folder = path.parent
    place = _status(folder)
    if place is None:
        raise InputError(f"output folder {folder} does not exist", f"make it: mkdir -p {folder}")
    if not stat.S_ISDIR(place.st_mode):
        raise InputError(f"output folder {folder} is not a directory", "choose another folder")
    there = _status(path)
    if there is not None:
        _check_old(path, there)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"output folder {folder} is not writable", "choose another folder or its permissions"
        )
    if there is not None and not os.access(path, os.W_OK):
        raise InputError(
            f"output {path} exists and is not writable", "remove it or choose another name"
        )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"output {path} cannot be used: {reason}", "name another file") from None


def _check_old(path: Path, status: os.stat_result) -> None:
    """Refuses to replace what is no file, and what stdout or stderr goes to."""
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"output {path} is a directory", "name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"output {path} is not a regular file", "name a file")
    for number, name in ((1, "stdout"), (2, "stderr")):
        with suppress(OSError):  # it is closed
            if os.path.samestat(status, os.fstat(number)):
                raise InputError(
                    f"output {path} is the file that {name} goes to", "name another file"
                )


class Pending:
    """A file under a temporary name in the folder of its final place.

    Unless :meth:`publish` is called it is gone when the block ends. The name tells the process, so
    that a later run removes what a killed one has left.

    Args:
        folder: Where the file will stand.
        needed: Bytes that will be written, where they are known; checked against the free space.
    """

    def __init__(self, folder: Path, needed: int = 0) -> None:
        self.folder = folder
        self.needed = needed
        self.file: BinaryIO
        self._path = folder / f".opfuse-{_host()}-{os.getpid()}-{uuid4().hex[:8]}.tmp"

    def __enter__(self) -> Pending:
        with translated(self.folder, self.needed):
            _sweep(self.folder)
            usage = shutil.disk_usage(self.folder)
            if usage.total and self.needed > usage.free:  # some network file systems tell nothing
                raise _no_room(self.folder, self.needed, usage.free)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self.file = os.fdopen(os.open(self._path, flags, 0o666), "wb")
        return self

    def publish(self, path: Path) -> None:
        """Moves the written file to ``path`` and replaces what is there, in one step."""
        with translated(path, self.needed):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self._path, path)
            with suppress(OSError):  # some file systems cannot sync a folder
                _sync_folder(path.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves what was there.

    Raises:
        InputError: The file cannot be written; the message tells the bytes needed and free.
    """
    with Pending(path.parent, len(data)) as pending:
        with translated(path, len(data)):
            pending.file.write(data)
        pending.publish(path)


@contextmanager
def translated(path: Path, needed: int = 0) -> Iterator[None]:
    """Turns failures of the file system into InputError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            free = shutil.disk_usage(path if path.is_dir() else path.parent).free
            raise _no_room(path, needed, free) from None
        raise InputError(
            f"cannot write {path}: {error.strerror or error}", "choose another place"
        ) from None


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder for the time of the block; those of killed runs go first.

    Raises:
        InputError: There is no room for what is written inside.
    """
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"opfuse-{_host()}-*"):
        if _is_left(old.name):
            shutil.rmtree(old, ignore_errors=True)
    prefix = f"opfuse-{_host()}-{os.getpid()}-"
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
            yield Path(name)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"no room for temporary files in {base}: {error.strerror}",
            "free some space, or set TMPDIR to a folder with more",
        ) from None


def _no_room(path: Path, needed: int, free: int) -> InputError:
    wanted = f"{needed} bytes needed, " if needed else ""
    return InputError(
        f"no room to write {path}: {wanted}{free} bytes free on the disk, or a file size limit",
        "free some space or write to another disk",
    )


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum() or c == "_")[:32] or "host"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what processes of this host that are gone have left here."""
    for path in folder.glob(f".opfuse-{_host()}-*.tmp"):
        if _is_left(path.name):
            with suppress(OSError):
                path.unlink()


def _is_left(name: str) -> bool:
    """Whether the process that the name of a temporary file tells is gone."""
    process = name.split("-")[2]
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
