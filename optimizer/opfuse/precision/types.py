"""The types of values from the types of what they are computed from, by ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper
from onnx.defs import OpSchema

from opfuse.graph.collectives import COLLECTIVES, DOMAIN
from opfuse.graph.protos import opset_of

LOW: Mapping[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    **{element: name for name, element in LOW.items()},
}
FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)

_SPELT = {
    f"tensor({name})": getattr(TensorProto, element)
    for name, element in (
        *((low, low.upper()) for low in ("float", "float16", "bfloat16", "double", "bool")),
        *((low, low.upper()) for low in ("int8", "int16", "int32", "int64")),
        *((low, low.upper()) for low in ("uint8", "uint16", "uint32", "uint64", "string")),
    )
}
_CONSTANTS = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}


class Clash(Exception):
    """A node is given types that its operator does not take together."""


def schema(op: str, domain: str, opset: int) -> OpSchema | None:
    """Return the definition of a standard operator at ``opset``, or None."""
    if domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def formal(parameters: Sequence[OpSchema.FormalParameter], index: int) -> str:
    """Return the type variable, or the type, of parameter ``index``; "" where there is none."""
    if index < len(parameters):
        return str(parameters[index].type_str)
    last = parameters[-1] if parameters else None
    if last is not None and last.option == OpSchema.FormalParameterOption.Variadic:
        return str(last.type_str)
    return ""


def allowed(found: OpSchema, variable: str) -> frozenset[int]:
    """Return the element types that a type variable of ``found`` may stand for."""
    for constraint in found.type_constraints:
        if constraint.type_param_str == variable:
            spelt = constraint.allowed_type_strs
            return frozenset(_SPELT[text] for text in spelt if text in _SPELT)
    return frozenset({_SPELT[variable]} if variable in _SPELT else ())


def body_types(function: FunctionProto, inputs: Sequence[int]) -> dict[str, int]:
    """Return the element type of every value of a function that is called with these types.

    Raises:
        Clash: An operator of the body does not take what it is given.
    """
    opset = opset_of(function)
    known = dict(zip(function.input, inputs, strict=False))
    for node in function.node:
        known |= dict(zip(node.output, _node_types(node, known, opset), strict=False))
    return known


def _node_types(node: NodeProto, known: Mapping[str, int], opset: int) -> list[int]:
    attributes = {item.name: item for item in node.attribute}
    if node.op_type == "Constant":
        (name,) = attributes
        return [_CONSTANTS.get(name, 0) or attributes[name].t.data_type]
    if node.op_type == "Cast":
        return [int(helper.get_attribute_value(attributes["to"]))]
    if node.op_type == "CastLike":
        return [known[node.input[1]]]
    if node.domain == DOMAIN and node.op_type in COLLECTIVES:
        return [known[node.input[0]]]
    found = schema(node.op_type, node.domain, opset)
    if found is None:
        raise Clash(f"{node.op_type} is not known")
    bound: dict[str, int] = {}
    for index, name in enumerate(node.input):
        if not name:
            continue
        variable = formal(found.inputs, index)
        if known[name] not in allowed(found, variable):
            raise Clash(f"{node.op_type} does not take {NAMES.get(known[name], known[name])}")
        if bound.setdefault(variable, known[name]) != known[name]:
            raise Clash(f"{node.op_type} wants its inputs in one type")
    return [_result(found, formal(found.outputs, i), bound) for i in range(len(node.output))]


def _result(found: OpSchema, variable: str, bound: Mapping[str, int]) -> int:
    if variable in bound:
        return bound[variable]
    only = allowed(found, variable)
    if len(only) != 1:
        raise Clash(f"the type of a result of {found.name} is not known")
    return next(iter(only))
