"""Writes a model so that the old file is there until the new one is whole.

Small weights go into the .onnx file. Large ones are streamed into one data file beside it, named by
the hash of its content, so that a reader of the old .onnx never sees the new weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.errors import InputError
from opfuse.files import Pending, check_output, translated, write_atomically
from opfuse.graph.external import data_files
from opfuse.graph.protos import BITS, all_tensors, byte_size, is_external
from opfuse.graph.weights import DerivedValues, raw_blocks
from opfuse.stages.load import Source

INLINE_LIMIT = 1 << 30
_SMALLEST_EXTERNAL = 1024
# onnxruntime maps external tensors instead of copying them where the offset is on a page.
_ALIGNMENT = 4096
_LARGEST_REFERRER = 256 << 20
_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
)


@dataclass(frozen=True)
class _Weight:
    """A tensor of the model and its bytes; weights of equal ``place`` are one range of one file."""

    tensor: TensorProto
    size: int
    place: tuple[str, ...]
    blocks: Iterator[bytes]


def save(graph: gs.Graph, model: ModelProto, source: Source, output: Path) -> None:
    """Writes ``model`` and its weights; ``output`` is replaced only when all is on the disk.

    Args:
        graph: The graph that ``model`` was exported from; it holds the values of merged weights.
        model: Its tensors are changed: afterwards they are inline or point into the new data file.
        source: What it was made from: the external tensors of ``model`` are still where its are.
        output: The .onnx file.

    Raises:
        InputError: The output cannot be written; the old one is as it was.
    """
    check_output(output)
    merged = dict(_merged(graph))
    base_dir = source.base_dir
    kept = {path.resolve() for path in data_files(source.proto, base_dir)}
    stale = {
        name for name in _own_data_files(output) if (output.parent / name).resolve() not in kept
    }
    if _fits_inline(model, merged):
        for weight in _weights(model, merged, base_dir):
            if is_external(weight.tensor):
                _set_values(weight.tensor, b"".join(weight.blocks))
        write_atomically(output, model.SerializeToString(deterministic=True))
    else:
        stale.discard(_save_beside(model, list(_weights(model, merged, base_dir)), output))
    for name in stale:
        with suppress(OSError):
            (output.parent / name).unlink()


def _merged(graph: gs.Graph) -> Iterator[tuple[str, DerivedValues]]:
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, DerivedValues):
            yield name, tensor._values


def _fits_inline(model: ModelProto, merged: Mapping[str, DerivedValues]) -> bool:
    """Whether all is small and nothing lay in a data file before."""
    total = 0
    for tensor in all_tensors(model):
        total += byte_size(tensor) or 0
        if is_external(tensor) and tensor.name not in merged:
            return False
    return total < INLINE_LIMIT and not any(map(_reads_file, merged.values()))


def _reads_file(values: DerivedValues) -> bool:
    for part in values.parts:
        inner = part._values
        if isinstance(inner, DerivedValues):
            if _reads_file(inner):
                return True
        elif isinstance(inner, LazyValues) and is_external(inner.tensor):
            return True
    return False


def _weights(
    model: ModelProto, merged: Mapping[str, DerivedValues], base_dir: Path
) -> Iterator[_Weight]:
    """Every tensor whose bytes can go to a file of their own."""
    for tensor in all_tensors(model):
        size = byte_size(tensor)
        if size is None or (BITS[tensor.data_type] < 8 and not _has_raw_bytes(tensor)):
            continue
        if is_external(tensor) and tensor.name in merged:
            yield _Weight(tensor, size, (), merged[tensor.name].blocks())
        else:
            place = tuple(f"{entry.key}={entry.value}" for entry in tensor.external_data)
            yield _Weight(tensor, size, place, raw_blocks(tensor, base_dir))


def _has_raw_bytes(tensor: TensorProto) -> bool:
    return is_external(tensor) or tensor.HasField("raw_data")


def _save_beside(model: ModelProto, weights: list[_Weight], output: Path) -> str:
    """Streams the weights into a data file, then writes the model; returns the data file's name."""
    for weight in weights:
        if weight.size < _SMALLEST_EXTERNAL and is_external(weight.tensor):
            _set_values(weight.tensor, b"".join(weight.blocks))
    large = [weight for weight in weights if weight.size >= _SMALLEST_EXTERNAL]
    offsets, size = _layout(large)
    with Pending(output.parent, size) as data, Pending(output.parent) as graph:
        with translated(output, size):
            name = f"{output.stem}.{_stream(large, offsets, data.file)}.data"
        for weight, offset in zip(large, offsets, strict=True):
            _set_place(weight.tensor, name, offset, weight.size)
        with translated(output):
            graph.file.write(model.SerializeToString(deterministic=True))
        data.publish(output.parent / name)
        graph.publish(output)
    return name


def _layout(weights: list[_Weight]) -> tuple[list[int], int]:
    """Offset of each weight, the same for those that are one in the source, and the file's size."""
    offsets: list[int] = []
    placed: dict[tuple[str, ...], int] = {}
    end = 0
    for weight in weights:
        if weight.place in placed:
            offsets.append(placed[weight.place])
            continue
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(start)
        end = start + weight.size
        if weight.place:
            placed[weight.place] = start
    return offsets, end


def _stream(weights: list[_Weight], offsets: list[int], file: BinaryIO) -> str:
    """Writes the weights at their offsets; returns 12 hexadecimal digits of the content's hash."""
    digest = hashlib.sha256()
    end = 0
    for weight, offset in zip(weights, offsets, strict=True):
        if offset < end:
            continue
        padding = bytes(offset - end)
        file.write(padding)
        digest.update(padding)
        end = offset
        for block in weight.blocks:
            file.write(block)
            digest.update(block)
            end += len(block)
        if end != offset + weight.size:
            raise InputError(
                f"the data of tensor {weight.tensor.name!r} changed while it was read",
                "run again when nothing writes to the model",
            )
    return digest.hexdigest()[:12]


def _set_values(tensor: TensorProto, data: bytes) -> None:
    for field in (*_VALUE_FIELDS, "external_data", "data_location"):
        tensor.ClearField(field)
    tensor.raw_data = data


def _set_place(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    for field in (*_VALUE_FIELDS, "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def _own_data_files(output: Path) -> set[str]:
    """Data files that an earlier run wrote for the file that is now replaced."""
    ours = re.compile(rf"{re.escape(output.stem)}\.[0-9a-f]{{12}}\.data")
    try:
        if output.stat().st_size > _LARGEST_REFERRER:
            return set()
        old = ModelProto.FromString(output.read_bytes())
    except (OSError, DecodeError):
        return set()
    entries = (e for tensor in all_tensors(old) for e in tensor.external_data)
    return {e.value for e in entries if e.key == "location" and ours.fullmatch(e.value)}
