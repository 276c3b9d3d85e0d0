"""Where the weights outside a model file lie: checked before any library opens such a path.

TensorRT's ONNX parser follows symbolic and hard links out of the model's folder, so a model could
pull any file of the machine into an engine. Nothing but a plain file in that folder passes here.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import ModelProto, TensorProto

from opfuse.errors import InputError
from opfuse.files import file_hash
from opfuse.graph.protos import all_tensors, byte_size, is_external


@dataclass(frozen=True)
class Extent:
    """The bytes of one tensor in its file; ``length`` is None where the tensor takes the rest."""

    location: str
    offset: int
    length: int | None


def extent(tensor: TensorProto) -> Extent:
    """Reads where an external tensor lies.

    Raises:
        InputError: No location, or an offset or length that is not a number from 0 up.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries.get("location"):
        raise InputError(f"tensor {tensor.name!r} is external and names no file", _REEXPORT)
    length = _number(tensor, entries, "length") if "length" in entries else None
    return Extent(entries["location"], _number(tensor, entries, "offset"), length)


def data_files(model: ModelProto, base_dir: Path) -> list[Path]:
    """The files that hold tensors of a model, in the order of their names."""
    found = {extent(t).location for t in all_tensors(model) if is_external(t)}
    return [base_dir / location for location in sorted(found)]


def model_hash(path: Path, model: ModelProto, base_dir: Path) -> str:
    """The SHA-256 of a model: of its file, and of its data files one behind the other."""
    return file_hash(path, *data_files(model, base_dir))


def check_external_data(model: ModelProto, base_dir: Path) -> None:
    """Checks every external tensor against the file system, without reading any weight.

    Raises:
        InputError: A data file is missing, too short, outside ``base_dir``, or reached by a link.
    """
    sizes: dict[str, int] = {}
    for tensor in all_tensors(model):
        if is_external(tensor):
            place = extent(tensor)
            if place.location not in sizes:
                sizes[place.location] = _file_size(tensor, place.location, base_dir)
            _check_extent(tensor, place, sizes[place.location])


_REEXPORT = "export the model again, or copy all of its files again"


def _number(tensor: TensorProto, entries: dict[str, str], key: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"tensor {tensor.name!r} has external data with {key} {text!r}, want 0 or more",
            _REEXPORT,
        )
    return int(text)


def _file_size(tensor: TensorProto, location: str, base_dir: Path) -> int:
    path = _contained(tensor, location, base_dir)
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise InputError(
            f"tensor {tensor.name!r} has its values in {location!r}, which is not in {base_dir}",
            f"put {location} beside the model",
        ) from None
    except OSError as error:
        raise InputError(f"data file {path}: {error.strerror}", "make it readable") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"data file {path} is not a regular file", _REEXPORT)
    if status.st_nlink > 1:
        raise InputError(
            f"data file {path} of tensor {tensor.name!r} has hard links, so it may be a file from "
            "outside the model's folder",
            "replace it with a copy of its own (cp --no-preserve=links)",
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"data file {path} cannot be read: permission denied", "make it readable")
    return status.st_size


def _contained(tensor: TensorProto, location: str, base_dir: Path) -> Path:
    """The path of a location that stays in the folder, with no link on the way."""
    parts = PurePosixPath(location).parts
    absolute = location.startswith("/") or PureWindowsPath(location).drive != ""
    if absolute or ".." in parts or "\0" in location or "\\" in location:
        raise InputError(
            f"tensor {tensor.name!r} has its values in {location!r}, outside the model's folder",
            "keep data files in the folder of the model and name them by a relative path",
        )
    path = base_dir
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise InputError(
                f"data file {location!r} of tensor {tensor.name!r} is reached by the symbolic "
                f"link {path}, which may lead outside the model's folder",
                "replace the link with a copy of the file (cp -L)",
            )
    return path


def _check_extent(tensor: TensorProto, place: Extent, size: int) -> None:
    expected = byte_size(tensor)
    if expected is None:
        raise InputError(f"tensor {tensor.name!r} keeps strings in external data", _REEXPORT)
    if place.length is not None and place.length != expected:
        raise InputError(
            f"tensor {tensor.name!r} needs {expected} bytes, its external data says {place.length}",
            _REEXPORT,
        )
    if place.offset + expected > size:
        raise InputError(
            f"data file {place.location!r} is too short for tensor {tensor.name!r}: it must hold "
            f"{place.offset + expected} bytes and holds {size}",
            "copy or download it again",
        )
