"""Hands a model over to a child process: a small message file, and weights left where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from opfuse.graph.protos import is_external
from opfuse.numerics.alone import stand_in
from opfuse.numerics.stored import InFile, Stored
from opfuse.numerics.whole import Subject

_INLINE = 1 << 16  # bytes above which a value moves from the message to a file that can be mapped


class Handover:
    """Writes models into ``folder``; values that two of them share are written once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "weights.data"
        self._count = 0
        self._spilled: dict[str, tuple[bytes, InFile]] = {}

    def subject(
        self, model: ModelProto, base_dir: Path, merged: Mapping[str, Stored] | None = None
    ) -> Subject:
        """Describe ``model`` for the child.

        Args:
            model: Its external values are relative to ``base_dir``.
            base_dir: A folder that exists as long as the subject is used.
            merged: Values that are neither in the message nor in a file.
        """
        values = dict(merged or {})
        skeleton = ModelProto()
        _copy_fields(model, skeleton, without="graph")
        _copy_fields(model.graph, skeleton.graph, without="initializer")
        for tensor in model.graph.initializer:
            if tensor.name not in values and _moves(tensor):
                values[tensor.name] = self._spill(tensor)
            if tensor.name in values:
                skeleton.graph.initializer.add(
                    name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
                )
            else:
                skeleton.graph.initializer.append(tensor)
        stand_in(skeleton)
        self._count += 1
        path = self._folder / f"{self._count}.onnx"
        path.write_bytes(skeleton.SerializeToString())
        return Subject(path, base_dir.resolve(), values)

    def _spill(self, tensor: TensorProto) -> InFile:
        """Append the value to the data file, unless the same one is there already."""
        known = self._spilled.get(tensor.name)
        if known is not None and known[0] == tensor.raw_data:
            return known[1]
        with self._data.open("ab") as file:
            value = InFile(tensor.data_type, tuple(tensor.dims), self._data, file.tell())
            file.write(tensor.raw_data)
        self._spilled[tensor.name] = tensor.raw_data, value
        return value


def _moves(tensor: TensorProto) -> bool:
    return len(tensor.raw_data) > _INLINE and not is_external(tensor)


def _copy_fields(source: Message, target: Message, *, without: str) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
