"""The model as it is, without a fusion, for TensorRT to make of it what it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from opfuse.config import Config
from opfuse.errors import EngineError
from opfuse.graph.collectives import refuse_ranks
from opfuse.graph.protos import all_tensors, byte_size, every_node
from opfuse.progress import Progress
from opfuse.stages.load import PROTOBUF_LIMIT, Source, inline, load
from opfuse.stages.lower import lower

if TYPE_CHECKING:
    from opfuse.engine.backend import EngineInfo

_NOTE = "no plugin pays here, so the engine is what TensorRT makes of the model as it is"


def original(path: Path) -> ModelProto:
    """What TensorRT is given of the model at ``path`` where it is on its own.

    Raises:
        EngineError: It has an operator that TensorRT would mistake.
        InputError: It is no model, one of several ranks, or too large for one message.
    """
    source = load(path)
    refuse_ranks(source.proto)
    model = inline(source)
    lower(model, "leave", ())
    return model


def build_as_it_is(
    source: Source,
    folder: Path,
    config: Config,
    progress: Progress,
    accept: Callable[[EngineInfo], None] | None,
    left: Mapping[str, str],
) -> EngineInfo | None:
    """The engine of the model as it is; None where TensorRT takes the fused one alone.

    ``left`` has the reasons for fused nodes that the fused one would have given back.
    Fused graphs whose ops are all spelt out again took 0.83 to 1.11 of the time that TensorRT for
    RTX 1.4 takes for the original (28 networks on an H100): nothing says beforehand which.
    """
    from opfuse.stages.build import build

    ours = all(not node.domain for node in every_node(source.proto))
    size = sum(byte_size(tensor) or 0 for tensor in all_tensors(source.proto))
    if config.precision != "keep" or config.dry_run or not ours or size > PROTOBUF_LIMIT:
        return None
    try:
        info = build(original(source.path), folder, config, progress, None, accept)
    except EngineError:
        return None
    return replace(info, notes=(*info.notes, _NOTE), left=left)
