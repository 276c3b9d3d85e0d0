"""A model in fp32 that rounds behind every operator that its original computes in half precision.

onnxruntime on a CPU computes chains of fp16 operators in fp32, which hides an overflow between
them, and has no kernels for bf16. Casts that a model itself has it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper

from opfuse.graph.bodies import written_out
from opfuse.graph.inferred import value_types
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.protos import HALVES, every_node
from opfuse.numerics.retype import retype

_RAW = "//raw"
_OWN = "//rounded"


def rounding(model: ModelProto) -> ModelProto:
    """Return ``model`` in fp32 with a pair of Casts behind every operator in half precision.

    Args:
        model: Its initializers need not have values; those in half precision are to be fed in fp32.
    """
    plain = ModelProto()
    plain.CopyFrom(model)
    nodes = list(written_out(model))
    del plain.graph.node[:], plain.functions[:]
    plain.graph.node.extend(nodes)
    plain.functions.extend(f for f in model.functions if f.domain != OPFUSE)
    types = value_types(plain)
    wide = retype(plain, HALVES, TensorProto.FLOAT)
    del wide.graph.value_info[:]
    given = {tensor.name for tensor in plain.graph.initializer}
    inputs = {info.name for info in plain.graph.input if types.get(info.name) in HALVES} - given
    parts = [part for name in sorted(inputs) for part in _pair(name, name + _OWN, types[name])]
    for node in wide.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name + _OWN * (name in inputs)
        parts.extend(_rounded(node, types))
    del wide.graph.node[:]
    wide.graph.node.extend(parts)
    return wide


def _rounded(node: NodeProto, types: Mapping[str, int]) -> Iterator[NodeProto]:
    outputs = [name for name in node.output if types.get(name) in HALVES]
    if node.op_type == "Constant":
        outputs = []  # its value was in half precision, and is what it was
    for index, name in enumerate(node.output):
        if name in outputs:
            node.output[index] = name + _RAW
    yield node
    for name in outputs:
        yield from _pair(name + _RAW, name, types[name])


def _pair(source: str, result: str, element: int) -> Iterator[NodeProto]:
    yield helper.make_node("Cast", [source], [f"{result}//half"], to=element)
    yield helper.make_node("Cast", [f"{result}//half"], [result], to=TensorProto.FLOAT)


def cast_types(model: ModelProto) -> set[int]:
    """The types that Casts in the model, or in bodies of its, give."""
    return {
        attribute.i
        for node in every_node(model)
        for attribute in node.attribute
        if attribute.name == "to"
    }
