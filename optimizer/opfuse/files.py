"""Output files: checked before the work, written beside their place, and moved there when whole.

Whoever writes a temporary file or folder holds its lock, which the system takes from a process
that ends in any way. So what has no lock was left behind, whatever the number of its process is by
now and in whichever container it ran.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

from opfuse.errors import InputError

_BLOCK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCRATCH = re.compile(r"opfuse-\w+-\d+-\w{8}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)
_LEFT_AFTER_S = 86_400  # without a write, where the file system has no locks


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

    Unless :meth:`publish` is called it is gone when the block ends; what a killed run has left is
    removed by the next one that writes into the folder.

    Args:
        folder: Where the file will stand.
        needed: Bytes that will be written, where they are known; checked against the free space.
    """

    def __init__(self, folder: Path, needed: int = 0) -> None:
        self.folder = folder
        self.needed = needed
        self.file: BinaryIO
        self._path = folder / _temporary_name()

    def __enter__(self) -> Pending:
        with translated(self.folder, self.needed):
            _sweep(self.folder)
            usage = shutil.disk_usage(self.folder)
            if usage.total and self.needed > usage.free:  # some network file systems tell nothing
                raise _no_room(self.folder, self.needed, usage.free)
            self.file = os.fdopen(_create_locked(self._path), "wb")
        return self

    def publish(self, path: Path) -> None:
        """Moves the written file to ``path`` and replaces what is there, in one step."""
        with translated(path, self.needed):
            self.file.flush()
            os.fsync(self.file.fileno())
            os.replace(self._path, path)
            self.file.close()  # and so unlocked, once nobody takes it for left behind
            with suppress(OSError):  # some file systems cannot sync a folder
                _sync(path.parent)

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


def file_hash(*paths: Path) -> str:
    """The SHA-256 of a file, or of several one behind the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


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
def pending_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of ``target``, in one step, when the block has ended well.

    It stands beside the folder that ``target`` is in where that is on the same disk: whoever
    watches that folder sees ``target`` whole and nothing else.

    Raises:
        InputError: The folder cannot be written.
    """
    home = target.parent
    with translated(target):
        outer = home.resolve().parent
        if os.stat(outer).st_dev == os.stat(home).st_dev and os.access(outer, os.W_OK | os.X_OK):
            home = outer
        _sweep(home)

    def make() -> Path:
        folder = home / _temporary_name()
        folder.mkdir()
        return folder

    with translated(target), _own_folder(make) as folder:
        yield folder
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        _exchange(folder, target)  # which leaves the old one to be removed
        with suppress(OSError):
            _sync(target.parent)


def _exchange(folder: Path, target: Path) -> None:
    """Puts ``folder`` where ``target`` is, and what was there where ``folder`` was."""
    if not target.exists():
        folder.rename(target)
        return
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    names = os.fsencode(folder), os.fsencode(target)
    if exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    old = folder.with_name(_temporary_name())  # two steps, where the file system has not the one
    target.rename(old)
    folder.rename(target)
    old.rename(folder)


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder for the time of the block; those of killed runs go first.

    Raises:
        InputError: There is no room for what is written inside.
    """
    base = Path(tempfile.gettempdir())
    for old in base.glob("opfuse-*"):
        if _SCRATCH.fullmatch(old.name):
            _remove_if_left(old)
    prefix = f"opfuse-{_host()}-{os.getpid()}-"
    try:
        with _own_folder(lambda: Path(tempfile.mkdtemp(prefix=prefix))) as folder:
            yield folder
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


def _temporary_name() -> str:
    return f".opfuse-{_host()}-{os.getpid()}-{uuid4().hex[:8]}.tmp"


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum() or c == "_")[:32] or "host"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_locked(path: Path) -> int:
    """A new file that nobody takes for left behind."""
    while True:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was swept before it had its lock


@contextmanager
def _own_folder(make: Callable[[], Path]) -> Iterator[Path]:
    """A new folder for the time of the block, which nobody takes for left behind."""
    while True:
        folder = make()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # it was swept before it had its lock
            continue
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what runs that are gone have left here."""
    for path in folder.glob(".opfuse-*.tmp"):
        _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    """Removes a temporary file or folder whose lock nobody holds."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone, or another user's
        return
    try:
        if _is_left(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except OSError:  # not ours to remove
        return
    finally:
        os.close(descriptor)


def _is_left(descriptor: int) -> bool:
    """Whether nobody writes it any more; the descriptor has the lock then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(descriptor).st_mtime > _LEFT_AFTER_S
    return True


def is_module(path: Path) -> bool:
    """Whether this names a function of a Python file."""
    file, _, name = path.name.rpartition(":")
    return file.endswith(".py") and name.isidentifier()
