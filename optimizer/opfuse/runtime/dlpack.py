"""DLPack by ctypes: arrays of any library in, and device memory out, without copying.

The structs are those of dlpack.h (DLPack 0.8 and, unversioned, all later ones).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from onnx import TensorProto

from opfuse.errors import InputError
from opfuse.graph.protos import BITS, type_name

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
HOST_KINDS = frozenset({CPU, CUDA_HOST})
DEVICE_KINDS = frozenset({CUDA, CUDA_MANAGED})
_NAME = b"dltensor"
_CODES: dict[tuple[int, int], int] = {  # (code, bits) of DLDataType
    (2, 32): TensorProto.FLOAT,
    (2, 16): TensorProto.FLOAT16,
    (2, 64): TensorProto.DOUBLE,
    (4, 16): TensorProto.BFLOAT16,
    (0, 64): TensorProto.INT64,
    (0, 32): TensorProto.INT32,
    (0, 8): TensorProto.INT8,
    (1, 8): TensorProto.UINT8,
    (6, 8): TensorProto.BOOL,
}
_TO_CODE: dict[int, tuple[int, int]] = {element: code for code, element in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
# For a capsule that is being destroyed: no reference to it may be taken.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_dying = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True)
class View:
    """An array of another library, borrowed as long as ``keep`` lives."""

    address: int
    element: int
    shape: tuple[int, ...]
    on_device: bool
    index: int
    contiguous: bool
    keep: Any

    @property
    def bytes(self) -> int:
        """What the elements take."""
        return byte_count(self.element, self.shape)


def byte_count(element: int, shape: tuple[int, ...]) -> int:
    """The bytes of a dense tensor."""
    return (prod(shape) * BITS[element] + 7) // 8


def view(array: Any, name: str, stream: int) -> View:
    """Borrow ``array``, whose producer makes ``stream`` wait until it is written.

    Raises:
        InputError: It is no array, or has a type or a place that opfuse does not take.
    """
    try:
        kind, index = array.__dlpack_device__()
        on_device = int(kind) in DEVICE_KINDS
        capsule = array.__dlpack__(stream=stream) if on_device else array.__dlpack__()
    except (AttributeError, TypeError, BufferError, RuntimeError, ValueError) as error:
        raise InputError(
            f"input {name!r} ({type(array).__name__}) cannot be read: {error}",
            "give a NumPy array, or any array with __dlpack__",
        ) from None
    tensor = ctypes.cast(_get(capsule, _NAME), ctypes.POINTER(_Managed)).contents.tensor
    element = _CODES.get((tensor.dtype.code, tensor.dtype.bits))
    if element is None or tensor.dtype.lanes != 1 or not (on_device or int(kind) in HOST_KINDS):
        raise InputError(f"input {name!r} has a type or a device that opfuse does not take")
    shape = tuple(tensor.shape[: tensor.rank])
    strides = tuple(tensor.strides[: tensor.rank]) if tensor.strides else None
    address = (tensor.data or 0) + tensor.byte_offset
    return View(
        address, element, shape, on_device, int(index), _is_dense(shape, strides), (array, capsule)
    )


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or 0 in shape:
        return True
    step = 1
    for size, stride in reversed(list(zip(shape, strides, strict=True))):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


class Array:
    """Memory that opfuse has allocated, as an array that other libraries take by DLPack.

    It is freed when neither this object nor what was made of it lives any more.
    """

    def __init__(
        self,
        address: int,
        element: int,
        shape: tuple[int, ...],
        free: Callable[[int], None],
        device: tuple[int, int] = (CUDA, 0),
    ) -> None:
        self.address, self.element, self.shape = address, element, shape
        self._free = free
        self._device = device

    def __del__(self) -> None:
        self._free(self.address)

    def __repr__(self) -> str:
        return f"Array({type_name(self.element)}, {list(self.shape)}, device {self._device})"

    def __dlpack_device__(self) -> tuple[int, int]:
        """The kind and number of the device."""
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        """A capsule; the memory is already written, so no stream has to wait."""
        return _capsule(self)

    def to(self, library: Any) -> Any:
        """This memory as an array of ``library``, such as ``torch``."""
        return library.from_dlpack(self)


_exported: dict[int, tuple[Any, ...]] = {}
"""What a capsule borrows, by the address of its struct, until its consumer lets go."""


def _capsule(array: Array) -> Any:
    rank = len(array.shape)
    shape = (ctypes.c_int64 * max(rank, 1))(*array.shape)
    managed = _Managed()
    kind, index = array.__dlpack_device__()
    code, bits = _TO_CODE[array.element]
    managed.tensor = _Tensor(
        array.address or None,
        _Device(kind, index),
        rank,
        _DataType(code, bits, 1),
        ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
        None,
        0,
    )
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _exported[address] = managed, shape, array
    return _new(address, _NAME, _destroy)


def _let_go(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _forget(capsule: int) -> None:
    """A capsule that nobody consumed still has its name."""
    if _is_valid(capsule, _NAME):
        _exported.pop(_get_dying(capsule, _NAME), None)


_delete = _Deleter(_let_go)
_destroy = _Destructor(_forget)
