"""Path -> Source: every way in which a model file can be bad ends here, in one clear message.

The order of the gates matters: native libraries die on files that get past the earlier ones.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from opfuse.errors import InputError
from opfuse.files import file_hash
from opfuse.graph import external, later_opset, signatures, wellformed
from opfuse.graph.collectives import rank_of
from opfuse.graph.filekind import file_kind
from opfuse.graph.protos import BITS, all_tensors, byte_size, is_external, opset_of, value_counts
from opfuse.graph.sparse import make_dense

PROTOBUF_LIMIT = 2**31 - 1
_WEIGHT_BYTES = 4096
_SCAN_BYTES = 16 * 2**20
_BFLOAT16 = re.compile(r"unsupported type:? tensor\(bfloat16\)")  # the checker's words
# The checker's own errors, and what its C++ throws besides, such as for a Cast to no type.
_REFUSALS = (
    *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
    *(IndexError, RuntimeError, ValueError),
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Source:
    """A checked model; tensors in external files stay there.

    ``base_dir`` is the folder that external data is relative to; ``notes`` say what was put right
    or looks odd.
    """

    path: Path
    proto: ModelProto
    base_dir: Path
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Hash the model's file and its data files."""
        return external.model_hash(self.path, self.proto, self.base_dir)


def load(path: Path) -> Source:
    """Reads and checks an ONNX model.

    Raises:
        InputError: The file is not there, is not ONNX, or is not a model that can be fused.
    """
    path = Path(path)
    proto = _parse(path, _read(path))
    base_dir = path.parent
    try:
        notes = _check(proto, base_dir)
    except InputError as error:
        raise InputError(f"{path}: {error.what}", error.fix) from None
    return Source(path, proto, base_dir, tuple(notes))


def content_hash(source: Source) -> str:
    """SHA-256 of the model and of the files that hold its weights."""
    digest, graph = hashlib.sha256(), source.proto.graph
    rest = (*graph.node, *graph.input, *graph.output, *source.proto.functions)
    for part in (*rest, *source.proto.opset_import):
        digest.update(part.SerializeToString(deterministic=True))
    for tensor in graph.initializer:  # one at a time: together they may be gigabytes
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}".encode())
        raw = tensor.HasField("raw_data")
        digest.update(tensor.raw_data if raw else tensor.SerializeToString(deterministic=True))
    for path in external.data_files(source.proto, source.base_dir):
        digest.update(file_hash(path).encode())
    return digest.hexdigest()


def inline(source: Source) -> ModelProto:
    """The model with all its weights in it, for a tool that may open no other file.

    Raises:
        InputError: It is larger than a protobuf message can be.
    """
    total = sum(byte_size(tensor) or 0 for tensor in all_tensors(source.proto))
    if total > PROTOBUF_LIMIT:
        raise InputError(f"{source.path} has {total} bytes of weights", "use a smaller model")
    onnx.load_external_data_for_model(source.proto, str(source.base_dir))
    return source.proto


def protect(source: Source, outputs: Iterable[Path]) -> None:
    """Refuses outputs that would replace what the model consists of, by whatever name or link.

    Nothing could be compared with the original afterwards, nor be made from it again.

    Raises:
        InputError: An output is the model's own file, or one of its external data.
    """
    own = [source.path, *external.data_files(source.proto, source.base_dir)]
    for path in outputs:
        if any(_is_same_file(path, file) for file in own):
            raise InputError(
                f"output {path} is a file of the model itself", "choose another name or folder"
            )


def _is_same_file(path: Path, file: Path) -> bool:
    return path.resolve() == file.resolve() or (path.exists() and path.samefile(file))


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a directory", "name the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file", "write the model to a file first")
        if status.st_size == 0:
            raise InputError(f"{path} is empty", "export or copy the model again")
        if status.st_size > PROTOBUF_LIMIT:
            raise _too_large(path, status.st_size)
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "check the path of the model") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read: {reason}", "make it readable") from None


def _too_large(path: Path, size: int) -> InputError:
    with path.open("rb") as file:
        kind = file_kind(file.read(512))
    if kind is not None:
        return _wrong_kind(path, kind)
    return InputError(
        f"{path} has {size} bytes, and a protobuf file holds at most {PROTOBUF_LIMIT}",
        "export with the weights as external data (onnx.save(..., save_as_external_data=True))",
    )


def _wrong_kind(path: Path, kind: str) -> InputError:
    fix = "name the ONNX file (.onnx) that the model was exported to"
    if "Git LFS" in kind:
        fix = "fetch the file itself (git lfs pull)"
    return InputError(f"{path} is {kind}, not an ONNX model", fix)


def _parse(path: Path, data: bytes) -> ModelProto:
    kind = file_kind(data[:512])
    if kind is not None:
        raise _wrong_kind(path, kind)
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError:
        raise InputError(
            f"{path} is not an ONNX model, or is cut off: its {len(data)} bytes are no whole "
            "protobuf message",
            "export or copy the model again",
        ) from None
    if not proto.HasField("graph") or not proto.ir_version:
        raise InputError(
            f"{path} is not an ONNX model: it holds no graph", "export or copy the model again"
        )
    return proto


def _check(proto: ModelProto, base_dir: Path) -> list[str]:
    if proto.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"IR version {proto.ir_version} is newer than the {onnx.IR_VERSION} known here",
            "update the onnx package, or export the model for an older version",
        )
    wellformed.check_names(proto)
    wellformed.use_default_domain(proto)
    signatures.check_versions(proto)
    wellformed.check_opsets(proto)
    rank_of(proto)
    wellformed.check_functions(proto)
    notes = wellformed.check_operators(proto)
    notes += wellformed.repair_graph(proto.graph)
    notes += signatures.check_signatures(proto)
    _check_tensors(proto)
    external.check_external_data(proto, base_dir)
    notes += make_dense(proto.graph)
    notes += _run_checker(proto)
    return notes + _overridable(proto) + _odd_weights(proto)


def _check_tensors(proto: ModelProto) -> None:
    for tensor in all_tensors(proto):
        if tensor.data_type not in BITS and tensor.data_type != TensorProto.STRING:
            raise InputError(
                f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}",
                "export the model again",
            )
        if any(dim < 0 for dim in tensor.dims):
            raise InputError(
                f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}",
                "export the model again",
            )
        if not is_external(tensor):
            _check_size(tensor)


def _check_size(tensor: TensorProto) -> None:
    """Refuses raw data of another size than the shape's, and more single values than it has."""
    raw = tensor.HasField("raw_data")
    expected, actual = (byte_size(tensor), len(tensor.raw_data)) if raw else value_counts(tensor)
    if expected is not None and (actual > expected or (raw and actual < expected)):
        raise InputError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} "
            f"{'bytes' if raw else 'values'} and has {actual}",
            "export or copy the model again",
        )


def _run_checker(proto: ModelProto) -> list[str]:
    """Returns a note where operators take bfloat16 only in a later opset, or only outside ONNX.

    The first is read as a model of that opset. Of the rest, such as Einsum, TensorRT knows more
    than ONNX does: everything else about them is checked, as of float16.
    """
    model = _skeleton(proto)
    why = _invalid(model)
    if not _BFLOAT16.search(why):
        if why:
            raise InputError(f"not valid ONNX: {why}", "export the model again")
        return []
    written = opset_of(proto)
    for version in later_opset.raised(proto):
        if not _invalid(_skeleton(proto)):
            return [f"opset {written} has bfloat16 for fewer operators: read as {version}"]
    if other := _invalid(later_opset.in_float16(_skeleton(proto))):
        raise InputError(f"not valid ONNX: {other}", "export the model again")
    return [f"ONNX has no bfloat16 for an operator, which is all that is wrong: {why}"]


def _invalid(model: ModelProto) -> str:
    """What onnx.checker says against it, or nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except _REFUSALS as error:
        first = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        return first.split("==> Context")[0].strip()
    return ""


def _skeleton(proto: ModelProto) -> ModelProto:
    """The model with each large weight as an input of its type: the checker copies what it gets.

    Weights are checked apart from it, so that gigabytes neither move nor hit protobuf's limit.
    """
    graph = proto.graph
    small = [item for item in graph.initializer if _is_small(item)]
    large = [item for item in graph.initializer if not _is_small(item)]
    known = {item.name for item in graph.input}
    bare = ModelProto(
        ir_version=max(proto.ir_version, 4),
        opset_import=proto.opset_import,
        functions=proto.functions,
    )
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.initializer.extend(small)
    bare.graph.sparse_initializer.extend(graph.sparse_initializer)
    bare.graph.input.extend(graph.input)
    bare.graph.input.extend(
        onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        for item in large
        if item.name not in known
    )
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    wellformed.set_apart(bare)
    return bare


def _is_small(tensor: TensorProto) -> bool:
    size = byte_size(tensor)
    return not is_external(tensor) and (size is None or size <= _WEIGHT_BYTES)


def _overridable(proto: ModelProto) -> list[str]:
    """A note on inputs that hold a value already; before IR version 4 every weight was one."""
    given = {value.name for value in proto.graph.input}
    names = [tensor.name for tensor in proto.graph.initializer if tensor.name in given]
    if not names or proto.ir_version < 4:
        return []
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return [f"input {names[0]!r}{more} has a value in the model: a constant from here on"]


def _odd_weights(proto: ModelProto) -> list[str]:
    """Notes on NaN and +Inf in inline weights; -Inf is what masks are made of."""
    budget, notes = _SCAN_BYTES, []
    for tensor in proto.graph.initializer:
        size = byte_size(tensor) or 0
        if tensor.data_type not in _FLOATS or is_external(tensor) or size > budget:
            continue
        budget -= size
        values = numpy_helper.to_array(tensor)
        nan, inf = int(np.isnan(values).sum()), int(np.isposinf(values).sum())
        if nan or inf:
            notes.append(f"initializer {tensor.name!r} holds {nan} NaN and {inf} Inf")
    return notes
