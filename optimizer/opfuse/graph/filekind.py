"""Recognises what people pass by mistake for an ONNX file or an engine, from its first bytes."""

from __future__ import annotations

from pathlib import Path

from opfuse.errors import InputError

_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80\x02", "a pickle (a PyTorch checkpoint?)"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file (a Keras model?)"),
    (b"ftrt", "a TensorRT engine"),
    (b"vtrt", "an engine of TensorRT for RTX"),
    (b"\x7fELF", "a shared library or program"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_MODEL = "an ONNX model"
_HEAD = 512
_ONNX = b"\x08"  # the protobuf tag of ir_version, which is written first
_BUNDLE = b"PK\x03\x04"  # a zip archive
_TEXT_CONTROLS = frozenset(b"\t\n\r\f")


def file_kind(head: bytes) -> str | None:
    """Names the kind of a file that is surely not ONNX; None where it may be.

    Args:
        head: The first bytes of the file; 512 are enough.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(_BUNDLE):
        torch = b"data.pkl" in head or b"/version" in head
        return "a PyTorch checkpoint" if torch else "a zip archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[8:9] == b"{" and b'"' in head[9:16] and head[4:8] == b"\0\0\0\0":
        return "a safetensors file"
    return _text_kind(head)


def no_engine(head: bytes) -> str | None:
    """Names the kind of a file that is surely no engine and no bundle; None where it may be one.

    Args:
        head: The first bytes of the file; 512 are enough.
    """
    if not head:
        return "empty"
    if head.startswith(_BUNDLE):
        return None
    if head.startswith(_ONNX):
        return _MODEL
    kind = file_kind(head)
    return None if kind is None or "engine" in kind else kind


def refuse_no_engine(path: Path) -> None:
    """Refuse a file that is surely no engine and no bundle, before anything is loaded for it.

    Raises:
        InputError: It is something else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            kind = no_engine(file.read(_HEAD))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "name an engine") from None
    if kind == _MODEL:
        raise InputError(
            f"{path} is {kind}, no engine", f"build one: opfuse build {path} -o MODEL.engine"
        )
    if kind is not None:
        raise InputError(f"{path} is {kind}, no engine", "name what opfuse build wrote")


def _text_kind(head: bytes) -> str | None:
    """An ONNX file begins with a protobuf tag that no text has."""
    if any(byte < 0x20 and byte not in _TEXT_CONTROLS for byte in head) or 0x7F in head:
        return None
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n").lower()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = ""
    return "an HTML page" if text.startswith(("<!doctype html", "<html")) else "a text file"
