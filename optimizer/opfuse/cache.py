"""A folder of files by the hash of all that they are made from, shared by any number of processes.

An entry is one file that ends in the SHA-256 of what comes before, and is moved to its place when
it is whole: what a torn disk or another program has left in it is seen, removed, and made again.
One process makes an entry while the others wait, by a lock that the system takes from a process
that dies. Whoever may write into the folder decides what others get: a hash is no signature.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from opfuse.errors import InputError, TimeLimit
from opfuse.files import Pending, translated

ENVIRONMENT = "OPFUSE_CACHE"
_FORMAT = "v1"
_MAGIC = b"opfuse cache 1\n"
_LENGTH = struct.Struct("<Q")
_BLOCK = 1 << 20
_LONGEST_FACTS = 1 << 28
_NAME = re.compile(r"[0-9a-f]{64}")
_LOCK_DIGITS = 3  # of the key: 4096 lock files at most, and two builds hardly ever share one
_POLL_S = 0.1
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# https://bford.info/cachedir/\n"


@dataclass
class Cache:
    """The entries in a folder.

    Args:
        folder: Where they are; it is made when the first one is kept.
        limit: Bytes that all entries may take together; the longest unused ones go first.
        notes: What was found damaged or could not be kept, for the report.
    """

    folder: Path
    limit: int
    notes: list[str] = field(default_factory=list)

    def get(self, kind: str, key: str, target: BinaryIO) -> dict[str, Any] | None:
        """The facts of an entry, whose content is written to ``target``; None where there is none.

        A damaged entry is removed; what has reached ``target`` is of no use then.
        """
        path = self._path(kind, key)
        try:
            with path.open("rb") as file:
                facts = _read(file, key, target)
                if facts is not None:
                    with suppress(OSError):  # a cache that is only read has no order of use
                        os.utime(file.fileno())
                    return facts
        except OSError:
            return None
        self.notes.append(f"entry {key[:12]} of the cache was damaged: made again")
        with suppress(OSError):
            path.unlink()
        return None

    def put(
        self, kind: str, key: str, facts: Mapping[str, Any], content: Path, sha256: str
    ) -> bool:
        """Keeps a file, if it is still the one with this hash; whether it is in the cache now."""
        try:
            return self._put(kind, key, facts, content, sha256)
        except (InputError, OSError) as error:
            if isinstance(error, InputError):
                what = error.what
            else:
                what = f"{self.folder}: {error.strerror}"
            self.notes.append(f"not kept in the cache: {what}")
            return False

    def _put(
        self, kind: str, key: str, facts: Mapping[str, Any], content: Path, sha256: str
    ) -> bool:
        path = self._path(kind, key)
        text = json.dumps({"key": key, "facts": facts}, sort_keys=True).encode()
        head = _MAGIC + _LENGTH.pack(len(text)) + text
        size = len(head) + content.stat().st_size + hashlib.sha256().digest_size
        if size > self.limit:
            self.notes.append(f"not kept in the cache: {size} bytes are more than its limit")
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tag()
        with content.open("rb") as source, Pending(path.parent, size) as pending:
            with translated(path, size):
                digest, inner = hashlib.sha256(head), hashlib.sha256()
                pending.file.write(head)
                while block := source.read(_BLOCK):
                    digest.update(block)
                    inner.update(block)
                    pending.file.write(block)
                pending.file.write(digest.digest())
            if inner.hexdigest() != sha256:  # another run has put its own there since
                return False
            pending.publish(path)
        self._evict(path)
        return True

    @contextmanager
    def making(
        self, key: str, time_limit: float | None, on_wait: Callable[[], None]
    ) -> Iterator[None]:
        """Keeps others from making the same entry during the block; waits while another one does.

        Raises:
            TimeLimit: The other one took longer than ``time_limit`` seconds.
        """
        path = self.folder / _FORMAT / "locks" / key[:_LOCK_DIGITS]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # a cache that is only read
            yield
            return
        try:
            _lock(descriptor, time_limit, on_wait)
            yield
        finally:
            os.close(descriptor)

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / _FORMAT / kind / key

    def _tag(self) -> None:
        """Tells backups what the folder is."""
        tag = self.folder / "CACHEDIR.TAG"
        if not tag.exists():
            with Pending(self.folder, len(_TAG)) as pending:
                pending.file.write(_TAG)
                pending.publish(tag)

    def _evict(self, newest: Path) -> None:
        """Removes the longest unused entries until the rest is within the limit."""
        entries = []
        for path in (self.folder / _FORMAT).glob("*/*"):
            if _NAME.fullmatch(path.name):
                with suppress(OSError):  # another process has removed it
                    status = path.stat()
                    entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            if path != newest:
                with suppress(OSError):
                    path.unlink()
                total -= size


def check_folder(folder: Path) -> None:
    """Refuses, before any work, a cache that could not be made.

    Raises:
        InputError: The path is a file, or none of its parents can be written into.
    """
    there = folder
    with suppress(OSError):
        while not there.exists() and there != there.parent:
            there = there.parent
        usable = there == folder or os.access(there, os.W_OK | os.X_OK)
        if there.is_dir() and usable and "\0" not in str(folder):
            return
    raise InputError(f"the cache {folder} is no folder and cannot be made", "name another folder")


def _lock(descriptor: int, time_limit: float | None, on_wait: Callable[[], None]) -> None:
    deadline = None if time_limit is None else time.monotonic() + time_limit
    waits = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeLimit(
                    f"another opfuse took longer than {time_limit:g} s to build the same engine",
                    "raise --time-limit",
                ) from None
            if not waits:
                on_wait()
            waits = True
            time.sleep(_POLL_S)
        except OSError:  # the file system has no locks: both build
            return
        else:
            return


def _read(file: BinaryIO, key: str, target: BinaryIO) -> dict[str, Any] | None:
    """Copies the content of an entry; its facts, or None where it is not what was written."""
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - digest.digest_size

    def take(size: int) -> bytes:
        nonlocal left
        data = file.read(max(0, min(size, left)))
        digest.update(data)
        left -= len(data)
        return data

    head = take(len(_MAGIC) + _LENGTH.size)
    if len(head) < len(_MAGIC) + _LENGTH.size or not head.startswith(_MAGIC):
        return None
    text = take(min(_LENGTH.unpack_from(head, len(_MAGIC))[0], _LONGEST_FACTS))
    while block := take(_BLOCK):
        target.write(block)
    if file.read() != digest.digest():
        return None
    entry = json.loads(text)
    facts: dict[str, Any] | None = entry["facts"] if entry["key"] == key else None
    return facts
