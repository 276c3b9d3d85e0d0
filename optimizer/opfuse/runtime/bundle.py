"""The ``.opfuse`` file: a zip archive, stored, whose last bytes are the SHA-256 of all before them.

Members: ``manifest.json`` (schedule, lock, hashes), the engines, the weights that are in none of
them, the plugin library where it is embedded, and ``fused.onnx`` with its data file. Equal contents
give equal bytes. In the schedule of format 2 several steps may run one engine, and say which tensor
goes to which port of it; in format 1 every step had an engine with the schedule's names. Format 3
has steps that copy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from opfuse.errors import InputError
from opfuse.files import Pending, file_hash, translated
from opfuse.graph.collectives import Rank
from opfuse.runtime.lock import Lock
from opfuse.runtime.schedule import Schedule

SCHEMA = 3
MANIFEST, FUSED, LIBRARY = "manifest.json", "fused.onnx", "plugins/libopfuse_plugins.so"
_DIGITS = 64  # of a SHA-256
_BLOCK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
# What zipfile raises for a member: damaged, absent, or of a compression that it does not know.
_UNREADABLE = (zipfile.BadZipFile, KeyError, NotImplementedError)
_AGAIN = "copy it again, or build it again from the model"


class Bundle:
    """An open bundle whose every byte was compared with its hash."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self._archive = archive
        self.manifest = manifest
        try:
            self.schedule = Schedule.from_dict(manifest["schedule"])
            self.lock = Lock.from_dict(manifest["lock"])
            self.constants: Mapping[str, str] = dict(manifest["constants"])
            stated = manifest.get("ranks")
            self.rank = None if stated is None else Rank(**stated)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its manifest lacks {error}", _AGAIN) from None

    @staticmethod
    def open(path: Path) -> Bundle:
        """Open a bundle after comparing it with its hashes.

        Raises:
            InputError: It is no bundle, is damaged, or has another format.
        """
        damage = _damage(path)
        try:
            archive = zipfile.ZipFile(path)
            manifest = json.loads(archive.read(MANIFEST))
        except (OSError, ValueError, *_UNREADABLE):
            raise InputError(f"{path} is no opfuse bundle, or is damaged", _AGAIN) from None
        if damage:
            raise InputError(f"{path} is damaged: {_culprit(archive, manifest)} differs", _AGAIN)
        if manifest.get("schema") != SCHEMA:
            found = manifest.get("schema")
            older = isinstance(found, int) and found < SCHEMA
            fix = "build it again" if older else "update opfuse, or build it again"
            raise InputError(f"{path} has format {found}, this opfuse reads {SCHEMA}", fix)
        return Bundle(path, archive, manifest)

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            InputError: There is none of this name.
        """
        try:
            return self._archive.read(member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: cannot read {member}: {error}", _AGAIN) from None

    def names(self) -> list[str]:
        """The names of all members."""
        return self._archive.namelist()

    def holds(self, member: str) -> bool:
        """Whether there is a member of this name."""
        return member in self._archive.namelist()


def is_bundle(path: Path) -> bool:
    """Whether the file begins as a zip archive does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def rank_in(path: Path) -> Rank | None:
    """Which rank's bundle this is, by its manifest alone; None for everything else."""
    stated = _stated(path, "ranks")
    return None if stated is None else Rank(**stated)


def profile_in(path: Path) -> dict[str, list[list[int]]]:
    """Smallest, usual, and largest shapes of dynamic inputs, by the manifest of a bundle alone.

    Empty for everything else.
    """
    return dict(_stated(path, "profile") or {})


def _stated(path: Path, key: str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(MANIFEST)).get(key)
    except (OSError, ValueError, AttributeError, *_UNREADABLE):
        return None


def write(
    path: Path, manifest: Mapping[str, Any], members: Mapping[str, Path | bytes]
) -> tuple[str, int]:
    """Write a bundle, whole or not at all; the hash of the file and its size.

    Args:
        path: The file; what is there is replaced.
        manifest: Gets the schema and the hash of every member.
        members: The bytes of each member, or a file that has them.

    Raises:
        InputError: The file cannot be written.
    """
    hashes = {name: _hash(source) for name, source in members.items()}
    facts = {"schema": SCHEMA, **manifest, "sha256": hashes}
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False).encode()
    needed = len(text) + sum(_size(source) for source in members.values())
    with Pending(path.parent, needed) as pending:
        with translated(path, needed):
            out = _Hashing(pending.file)
            with zipfile.ZipFile(cast(BinaryIO, out), "w", zipfile.ZIP_STORED) as archive:
                _add(archive, MANIFEST, text)
                for name, source in members.items():
                    _add(archive, name, source)
                archive.comment = b"0" * _DIGITS
                out.hold()
            digest = out.finish()
        pending.publish(path)
    return digest, out.size


class _Hashing:
    """A file that cannot seek and hashes what is written; zip archives come out the same."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._held: bytearray | None = None
        self.size = 0

    def write(self, data: bytes) -> int:
        """Write on, or keep what comes after :meth:`hold`."""
        if self._held is not None:
            self._held += data
        else:
            self._hash.update(data)
            self._file.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Zip archives ask for it."""
        self._file.flush()

    def hold(self) -> None:
        """Keep the directory, which is all that follows, until it is complete."""
        self._held = bytearray()

    def finish(self) -> str:
        """Write the directory with the hash of everything as the comment at its end.

        Returns the hash of the file, with that comment.
        """
        directory = bytes(self._held or b"")[:-_DIGITS]
        self._hash.update(directory)
        comment = self._hash.hexdigest().encode()
        self._file.write(directory + comment)
        self._hash.update(comment)
        return self._hash.hexdigest()


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.file_size = _size(source)
    with archive.open(entry, "w", force_zip64=entry.file_size >= 1 << 31) as target:
        if isinstance(source, bytes):
            target.write(source)
        else:
            with source.open("rb") as file:
                shutil.copyfileobj(file, target, _BLOCK)


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _hash(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return file_hash(source)


def _damage(path: Path) -> bool:
    """Whether the file is not what its last bytes say.

    Raises:
        InputError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        left = path.stat().st_size - _DIGITS
        with path.open("rb") as file:
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                digest.update(block)
                left -= len(block)
            return file.read() != digest.hexdigest().encode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "name a .opfuse file") from None


def _culprit(archive: zipfile.ZipFile, manifest: Mapping[str, Any]) -> str:
    """The member whose bytes are not those that were written, as far as that can be told."""
    for name, digest in dict(manifest.get("sha256", {})).items():
        try:
            if hashlib.sha256(archive.read(name)).hexdigest() != digest:
                return str(name)
        except _UNREADABLE:
            return str(name)
    return "its directory"
