"""The plugin library's C ABI (``plugins/abi/opfuse.h``), spelt for ctypes: no TensorRT, no GPU.

Types are numbered as in ONNX ``TensorProto.DataType``, attributes as in ``AttributeProto``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opfuse.errors import MissingComponent, OpfuseError
from opfuse.runtime.copies import Box

ABI_VERSION = 3
MAX_RANK = 8
CARD_BYTES = 512
MAX_TACTICS = 16
ATTRIBUTE_TYPES = {1: "FLOAT", 2: "INT", 3: "STRING"}

AttributeValue = float | int | str


class PluginError(OpfuseError):
    """The plugin library refused a call; the message names the op and the reason."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as a plugin sees it.

    Args:
        dtype: ONNX ``TensorProto.DataType``: 1 float, 10 float16, 16 bfloat16.
        shape: Its dimensions, all known.
        data: Its address on the GPU; 0 where only the shape is asked for.
    """

    dtype: int
    shape: tuple[int, ...]
    data: int = 0


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    )


class _OpInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_char_p),
        ("min_inputs", ctypes.c_int32),
        ("max_inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("attribute_count", ctypes.c_int32),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * MAX_RANK),
    )


class _Box(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("unit", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("early", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * MAX_RANK),
        ("source_strides", ctypes.c_int64 * MAX_RANK),
        ("target_strides", ctypes.c_int64 * MAX_RANK),
    )


def _signatures() -> dict[str, tuple[object, list[object]]]:
    """Result and argument types of each C function."""
    c_int, int32, text, pointer = ctypes.c_int, ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p
    int64 = ctypes.c_int64
    tensors = ctypes.POINTER(_Tensor)
    return {
        "opfuse_abi_version": (int32, []),
        "opfuse_version": (text, []),
        "opfuse_architectures": (text, []),
        "opfuse_tensorrt_headers": (int32, []),
        "opfuse_last_error": (text, []),
        "opfuse_op_count": (int32, []),
        "opfuse_describe_op": (c_int, [int32, ctypes.POINTER(_OpInfo)]),
        "opfuse_describe_attribute": (c_int, [int32, int32, ctypes.POINTER(_Attribute)]),
        "opfuse_create": (pointer, [text, ctypes.POINTER(_Attribute), int32]),
        "opfuse_destroy": (None, [pointer]),
        "opfuse_supports": (c_int, [pointer, int32, ctypes.POINTER(int32), int32, int32]),
        "opfuse_infer": (c_int, [pointer, tensors, int32, tensors, int32]),
        "opfuse_workspace_size": (int64, [pointer, tensors, int32]),
        "opfuse_tactics": (int32, [pointer, tensors, int32, ctypes.POINTER(int32), int32]),
        "opfuse_enqueue": (c_int, [pointer, tensors, int32, tensors, int32, pointer, pointer]),
        "opfuse_copy": (c_int, [ctypes.POINTER(_Box), int32, pointer]),
        "opfuse_comm_open": (c_int, [int32, int32, int64, text, pointer]),
        "opfuse_comm_join": (c_int, [text]),
        "opfuse_comm_state": (int32, []),
        "opfuse_comm_abort": (None, []),
        "opfuse_comm_transport": (text, []),
        "opfuse_comm_close": (c_int, []),
    }


def load(path: Path) -> ctypes.CDLL:
    """The library at ``path`` with its C functions typed.

    Raises:
        MissingComponent: The file cannot be loaded, or is no plugin library of this version.
    """
    rebuild = "reinstall opfuse, or unset OPFUSE_PLUGINS"
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _signatures().items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except OSError as error:
        raise MissingComponent(f"cannot load the plugin library {path}: {error}", rebuild) from None
    except AttributeError as error:
        raise MissingComponent(f"{path} is no opfuse plugin library: {error}", rebuild) from None
    if (found := library.opfuse_abi_version()) != ABI_VERSION:
        what = f"{path} speaks version {found} of the plugin ABI, this opfuse version {ABI_VERSION}"
        raise MissingComponent(what, rebuild)
    return library


def _attribute(name: str, value: AttributeValue) -> tuple[_Attribute, object]:
    """The C form of an attribute, and the buffer that has to outlive it."""
    if isinstance(value, str):
        text = value.encode()
        buffer: ctypes.Array[ctypes.c_char] | ctypes.c_float | ctypes.c_int64
        buffer = ctypes.create_string_buffer(text)
        kind, count = 3, len(text)
    elif isinstance(value, float):
        buffer, kind, count = ctypes.c_float(value), 1, 1
    else:
        buffer, kind, count = ctypes.c_int64(value), 2, 1
    return _Attribute(name.encode(), kind, count, ctypes.addressof(buffer)), buffer


def _tensors(tensors: Sequence[Tensor]) -> ctypes.Array[_Tensor]:
    array = (_Tensor * max(len(tensors), 1))()
    for slot, tensor in zip(array, tensors, strict=False):
        slot.data, slot.type, slot.rank = tensor.data or None, tensor.dtype, len(tensor.shape)
        slot.dims[: len(tensor.shape)] = tensor.shape
    return array


class Plugin:
    """One op of the library with its attributes; closed with ``close`` or a ``with`` block.

    Args:
        library: From :func:`load`.
        name: The op, such as ``"RmsNorm"``.
        attributes: ``float`` for FLOAT, ``int`` for INT, ``str`` for STRING; missing ones default.

    Raises:
        PluginError: There is no such op, or an attribute has a wrong name, type, or value.
    """

    def __init__(
        self, library: ctypes.CDLL, name: str, attributes: Mapping[str, AttributeValue]
    ) -> None:
        self._library = library
        converted = [_attribute(key, value) for key, value in attributes.items()]
        array = (_Attribute * max(len(converted), 1))(*(c for c, _ in converted))
        self._handle = library.opfuse_create(name.encode(), array, len(converted))
        if not self._handle:
            raise self._error()

    def __enter__(self) -> Plugin:
        """The plugin itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Frees it; a second call does nothing."""
        self._library.opfuse_destroy(self._handle)
        self._handle = None

    def supports(self, at: int, dtypes: Sequence[int], inputs: int) -> bool:
        """Whether position ``at`` of the input and output ``dtypes`` is well typed."""
        array = (ctypes.c_int32 * len(dtypes))(*dtypes)
        outputs = len(dtypes) - inputs
        return bool(self._library.opfuse_supports(self._handle, at, array, inputs, outputs))

    def infer(self, inputs: Sequence[Tensor], outputs: int) -> tuple[Tensor, ...]:
        """The dtype and shape of each output.

        Raises:
            PluginError: The op does not take these inputs.
        """
        out = (_Tensor * max(outputs, 1))()
        array = _tensors(inputs)
        if self._library.opfuse_infer(self._handle, array, len(inputs), out, outputs):
            raise self._error()
        return tuple(Tensor(t.type, tuple(t.dims[: t.rank])) for t in out[:outputs])

    def workspace_size(self, inputs: Sequence[Tensor]) -> int:
        """Bytes of scratch memory that ``enqueue`` needs for these inputs.

        Raises:
            PluginError: The op does not take these inputs.
        """
        array = _tensors(inputs)
        size: int = self._library.opfuse_workspace_size(self._handle, array, len(inputs))
        if size < 0:
            raise self._error()
        return size

    def tactics(self, inputs: Sequence[Tensor]) -> list[int]:
        """The values of the attribute ``tactic`` worth timing for these inputs beside 0, if any.

        Raises:
            PluginError: The op does not take these inputs.
        """
        found = (ctypes.c_int32 * MAX_TACTICS)()
        array = _tensors(inputs)
        count = self._library.opfuse_tactics(self._handle, array, len(inputs), found, MAX_TACTICS)
        if count < 0:
            raise self._error()
        return list(found[: min(count, MAX_TACTICS)])

    def enqueue(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        stream: int = 0,
        workspace: int = 0,
    ) -> None:
        """Launches on the CUDA stream of this address, and does not wait.

        Raises:
            PluginError: The op does not take these tensors, or CUDA refused the launch.
        """
        failed = self._library.opfuse_enqueue(
            self._handle,
            _tensors(inputs),
            len(inputs),
            _tensors(outputs),
            len(outputs),
            workspace or None,
            stream or None,
        )
        if failed:
            raise self._error()

    def _error(self) -> PluginError:
        return _last_error(self._library)


@dataclass(frozen=True)
class Copied:
    """A box to copy, the addresses of its tensors, and whether it may begin early.

    It may where nothing that is ahead of it on the stream has to do with what it writes, or writes
    what it reads.
    """

    box: Box
    source: int
    target: int
    early: bool = False


def copy(library: ctypes.CDLL, copied: Sequence[Copied], stream: int = 0) -> None:
    """Copy boxes, none of which overlaps another one's target, on a stream; does not wait.

    Raises:
        PluginError: A box is larger than the library takes, or CUDA refused the launch.
    """
    array = (_Box * max(len(copied), 1))()
    for slot, item in zip(array, copied, strict=False):
        first = item.source + item.box.first[0], item.target + item.box.first[1]
        unit = item.box.unit(*first)
        *outer, (run, _, _) = item.box.axes
        axes = [*outer, (run // unit, unit, unit)]
        slot.source, slot.target = first
        slot.unit, slot.rank, slot.early = unit, len(axes), item.early
        sizes, source, target = zip(*axes, strict=True)
        slot.sizes[: len(axes)] = sizes
        slot.source_strides[: len(axes)], slot.target_strides[: len(axes)] = source, target
    if library.opfuse_copy(array, len(copied), stream or None):
        raise _last_error(library)


def _last_error(library: ctypes.CDLL) -> PluginError:
    return PluginError(library.opfuse_last_error().decode(errors="replace"))


@dataclass(frozen=True)
class OpInfo:
    """An op of the library.

    Args:
        name: Its plugin name, such as ``"AddLayerNorm"``.
        version: Its plugin version.
        inputs: How many inputs it takes, least and most.
        outputs: How many outputs it has.
        attributes: The ONNX type of each, such as ``{"epsilon": "FLOAT"}``.
    """

    name: str
    version: str
    inputs: tuple[int, int]
    outputs: int
    attributes: Mapping[str, str]


def ops(library: ctypes.CDLL) -> tuple[OpInfo, ...]:
    """Every op of the library, sorted by name."""
    return tuple(_op(library, index) for index in range(library.opfuse_op_count()))


def _op(library: ctypes.CDLL, index: int) -> OpInfo:
    info = _OpInfo()
    library.opfuse_describe_op(index, ctypes.byref(info))
    attributes = {}
    for position in range(info.attribute_count):
        attribute = _Attribute()
        library.opfuse_describe_attribute(index, position, ctypes.byref(attribute))
        attributes[attribute.name.decode()] = ATTRIBUTE_TYPES[attribute.type]
    inputs = (info.min_inputs, info.max_inputs)
    return OpInfo(info.name.decode(), info.version.decode(), inputs, info.outputs, attributes)
