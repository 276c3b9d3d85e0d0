"""Operators that take bfloat16 only in a later opset than the one they are written for, or in none.

torch writes Conv and others in bfloat16 for opset 18, where ONNX has them for other types only.
TopK takes it from 24 on, Einsum nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from opfuse.graph.protos import all_tensors, every_graph, every_node, opset_of

_SETTLED = (22, 24)  # the opsets that operators got it in, by and large
_OLDEST = 18  # before, reductions have their axes in an attribute
_IR_VERSION = 10  # of opset 22 (onnx.helper.VERSION_TABLE)
# What means something else in a later opset (Changelog.md): other names, other inputs, other sizes.
_CHANGED = frozenset({"Attention", "DFT", "GridSample", "GroupNormalization"})
_TYPES = frozenset({"to", "dtype", "output_dtype"})
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})


def raised(model: ModelProto) -> Iterator[int]:
    """Make it a model of later opsets in which its operators mean the same, yielding each.

    Local functions are raised with it. Whoever takes none of them has the model as it was.
    """
    written, ir_version = opset_of(model), model.ir_version
    mixed = any(opset_of(body) not in (0, written) for body in model.functions)
    if written < _OLDEST or mixed or any(map(_changes, every_node(model))):
        return
    for version in _SETTLED:
        if written < version <= onnx.defs.onnx_opset_version():
            _set(model, version, max(ir_version, _IR_VERSION))
            yield version
    _set(model, written, ir_version)


def _set(model: ModelProto, version: int, ir_version: int) -> None:
    for imports in (model.opset_import, *(body.opset_import for body in model.functions)):
        for entry in imports:
            entry.version = entry.version if entry.domain else version
    model.ir_version = ir_version


def in_float16(model: ModelProto) -> ModelProto:
    """Return ``model`` of the other type of 16 bits; what its weights hold means nothing then."""
    other = ModelProto()
    other.CopyFrom(model)
    for tensor in all_tensors(other):
        tensor.data_type = _other(tensor.data_type)
    for node in every_node(other):
        for attribute in node.attribute:
            if attribute.name in _TYPES:
                attribute.i = _other(attribute.i)
    for graph in every_graph(other):
        for info in (*graph.input, *graph.output, *graph.value_info):
            kind = info.type.tensor_type
            kind.elem_type = _other(kind.elem_type)
    for function in other.functions:
        del function.value_info[:]
    return other


def _other(element: int) -> int:
    return TensorProto.FLOAT16 if element == TensorProto.BFLOAT16 else element


def _changes(node: NodeProto) -> bool:
    if node.domain:
        return False
    modes = [attribute for attribute in node.attribute if attribute.name == "ceil_mode"]
    rounds = any(mode.i or mode.ref_attr_name for mode in modes)  # a function's caller says it
    return node.op_type in _CHANGED or (node.op_type in _POOLS and rounds)
