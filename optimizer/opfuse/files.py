"""Output files: checked before the work, written beside their place, and moved there when whole."""

from __future__ import annotations

import errno
import os
import shutil
import socket
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
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output folder {folder} does not exist", f"make it: mkdir -p {folder}")
    if path.is_dir():
        raise InputError(f"output {path} is a directory", "name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"output {path} is not a regular file", "name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"output folder {folder} is not writable", "choose another folder or its permissions"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(
            f"output {path} exists and is not writable", "remove it or choose another name"
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
        process = path.name.split("-")[-2]
        if process.isdigit() and not _alive(int(process)):
            with suppress(OSError):
                path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
