"""What memory a bundle takes beside what TensorRT takes for the whole model: an estimate of both.

Weights, inputs, and outputs are the same in both and left out. What differs is what lies between
the steps of the bundle and between the kernels of the one engine, and how many engines there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from onnx import ModelProto, helper, inliner

from opfuse.engine.outline import outline
from opfuse.engine.plugin_nodes import is_plugin, leave
from opfuse.engine.profile import Profile
from opfuse.engine.residents import residents
from opfuse.engine.tensors import Typed, range_of, types_of
from opfuse.graph.protos import BITS
from opfuse.runtime import memory

CONTEXT = 73_400_320
"""Bytes of an execution context of TensorRT for RTX 1.4, which makes 128 streams (H100)."""
_SMALL = 1 << 10  # elements of a weight that may say something of a shape


def exceeds(
    model: ModelProto, base_dir: Path, library: Path, profile: Profile, *, around_attention: bool
) -> bool:
    """Whether the bundle of a lowered model takes more than TensorRT alone.

    Args:
        model: Its plugin nodes are those that the bundle will have; it may be changed.
        base_dir: Holds its external weights.
        library: The plugin library.
        profile: The shapes; the largest ones count.
        around_attention: As for `outline.outline`.

    Raises:
        EngineError: The model cannot be cut.
    """
    alone = CONTEXT + of_tensorrt(model, profile)
    made = outline(model, base_dir, library, around_attention=around_attention)
    between = memory.place(lives(made.schedule.lifetimes(), made.types, profile)).bytes
    return len(made.models) * CONTEXT + between > alone


def of_tensorrt(model: ModelProto, profile: Profile) -> int:
    """Bytes between the kernels of an engine for the whole model."""
    whole = _light(model)
    for node in whole.graph.node:
        if is_plugin(node):
            leave(whole, node)
    whole = inliner.inline_local_functions(whole)
    types = types_of(whole)
    sizes = {
        str(life.name): life.bytes for life in lives(dict.fromkeys(types, (0, 0)), types, profile)
    }
    return memory.place(lives(residents(whole.graph, sizes), types, profile)).bytes


def _light(model: ModelProto) -> ModelProto:
    """A copy in which large weights are inputs: shapes follow from small ones alone."""
    graph = helper.make_graph(model.graph.node, "", model.graph.input, model.graph.output)
    for item in model.graph.initializer:
        if prod(item.dims) <= _SMALL:
            graph.initializer.append(item)
        else:
            graph.input.append(Typed(item.data_type, tuple(item.dims)).info(item.name))
    copy = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    copy.ir_version = model.ir_version
    return copy


def lives(
    lifetimes: Mapping[str, tuple[int, int]], types: Mapping[str, Typed], profile: Profile
) -> list[memory.Life]:
    """Tensors as blocks of memory at the largest shapes, those of unknown sizes left out."""
    found = []
    for name, (first, last) in lifetimes.items():
        typed = types.get(name)
        sizes = None if typed is None else range_of(typed, profile)
        if typed is not None and sizes is not None:
            size = (prod(sizes.max) * BITS.get(typed.element, 0) + 7) // 8
            found.append(memory.Life(name, size, first, last))
    return found
