"""Recognises what people pass by mistake for an ONNX file, from its first bytes."""

from __future__ import annotations

_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80\x02", "a pickle (a PyTorch checkpoint?)"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file (a Keras model?)"),
    (b"ftrt", "a TensorRT engine"),
    (b"\x7fELF", "a shared library or program"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_TEXT_CONTROLS = frozenset(b"\t\n\r\f")


def file_kind(head: bytes) -> str | None:
    """Names the kind of a file that is surely not ONNX; None where it may be.

    Args:
        head: The first bytes of the file; 512 are enough.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        torch = b"data.pkl" in head or b"/version" in head
        return "a PyTorch checkpoint" if torch else "a zip archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[8:9] == b"{" and b'"' in head[9:16] and head[4:8] == b"\0\0\0\0":
        return "a safetensors file"
    return _text_kind(head)


def _text_kind(head: bytes) -> str | None:
    """An ONNX file begins with a protobuf tag that no text has (0x08)."""
    if any(byte < 0x20 and byte not in _TEXT_CONTROLS for byte in head) or 0x7F in head:
        return None
    try:
        text = head.decode("utf-8").lstrip("\ufeff \t\r\n").lower()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = ""
    return "an HTML page" if text.startswith(("<!doctype html", "<html")) else "a text file"
