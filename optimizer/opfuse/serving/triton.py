"""config.pbtxt: a Triton model's configuration, in protobuf's text format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opfuse.errors import InputError
from opfuse.serving.signature import Port, Shape

_TYPES = {
    "fp32": "TYPE_FP32",
    "fp16": "TYPE_FP16",
    "bf16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_FLOATS = ("fp32", "fp16", "bf16")


def config(
    name: str,
    backend: str,
    ports: Sequence[Port],
    max_batch: int,
    remarks: Sequence[str],
    settings: Sequence[str] = (),
) -> str:
    """The configuration.

    Args:
        name: The model's, and its folder's.
        backend: "tensorrt" or "python".
        ports: Inputs and outputs.
        max_batch: With more than 0, Triton adds the first dimension to all shapes, and joins
            requests along it: its TensorRT backend turns that on by itself.
        remarks: Lines that stand above it as comments.
        settings: Lines of its own that the model needs.

    Raises:
        InputError: Triton has no such type.
    """
    lines = [f"# {' '.join(remark.split())}" for remark in remarks]
    lines += [f"name: {quoted(name)}", f'backend: "{backend}"', f"max_batch_size: {max_batch}"]
    for kind, wanted in (("input", True), ("output", False)):
        for port in ports:
            if port.is_input is wanted:
                lines += _port(kind, port, max_batch > 0)
    if backend == "python":
        lines.append("instance_group [ { kind: KIND_GPU } ]")
    lines += settings
    inputs = [port for port in ports if port.is_input]
    if inputs:
        lines += _warm_up(inputs, max_batch > 0)
    return "\n".join(lines) + "\n"


def _port(kind: str, port: Port, batched: bool) -> Iterator[str]:
    yield f"{kind} {{"
    yield f"  name: {quoted(port.name)}"
    yield f"  data_type: {_type(port)}"
    yield f"  dims: {_list(_dims(port.shape, batched))}"
    if len(port.shape) == int(batched):  # Triton has no empty dims: a scalar is one element there
        yield "  reshape { shape: [ ] }"
    yield "}"


def _warm_up(inputs: Sequence[Port], batched: bool) -> Iterator[str]:
    """One request of the usual shapes, so that the first user does not wait for lazy loading.

    Whole numbers are zeros: random ones would be indices beyond a table.
    """
    yield "model_warmup {"
    yield '  name: "usual shapes"'
    yield f"  batch_size: {inputs[0].usual[0] if batched else 1}"
    for port in inputs:
        data = "random_data" if port.dtype in _FLOATS else "zero_data"
        dims = _list(_dims(port.usual, batched))
        yield "  inputs {"
        yield f"    key: {quoted(port.name)}"
        yield f"    value {{ data_type: {_type(port)} dims: {dims} {data}: true }}"
        yield "  }"
    yield "}"


def _dims(shape: Shape, batched: bool) -> Shape:
    return shape[1 if batched else 0 :] or (1,)


def _type(port: Port) -> str:
    try:
        return _TYPES[port.dtype]
    except KeyError:
        raise InputError(
            f"{port.name!r} has type {port.dtype}, which Triton has not",
            f"give inputs and outputs one of {', '.join(_TYPES)}",
        ) from None


def _list(dims: Shape) -> str:
    return f"[ {', '.join(map(str, dims))} ]"


def quoted(text: str) -> str:
    """A string in protobuf's text format, which has octal escapes for bytes."""
    return '"' + "".join(map(_escaped, text.encode())) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"
