"""What graphs and local functions say of their inputs and outputs, where the checker is silent.

Each check raises InputError without the file's name, like wellformed.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from opfuse.errors import InputError
from opfuse.graph.protos import BITS, every_graph, every_node, label
from opfuse.graph.wellformed import called_by, imports_of, key_of

_REEXPORT = "export the model again"
_TYPES = frozenset({*BITS, TensorProto.STRING, TensorProto.UNDEFINED})  # of the last: the checker


def check_signatures(model: ModelProto) -> list[str]:
    """Checks the inputs and outputs of the graph, of all graphs in it, and of local functions.

    A dimension of -1, which onnxruntime reads as one of any size, becomes one without a size.

    Returns:
        Notes on what was put right.

    Raises:
        InputError: Another negative dimension, an unknown type, an input without a shape, one or
            an output that is optional, two outputs of one name, or a call of a function with more
            than that has.
    """
    opened = sum(_check_values(graph) for graph in every_graph(model))
    outputs = [value.name for value in model.graph.output]
    for name in outputs:
        if outputs.count(name) > 1:
            raise InputError(
                f"two outputs have the name {name!r}",
                "remove one, or write it by an Identity of its own",
            )
    for value in (*model.graph.input, *model.graph.output):
        if value.type.HasField("optional_type"):
            raise InputError(
                f"{value.name!r} is optional, and TensorRT takes and gives tensors alone",
                "export a model of each case",
            )
    for value in model.graph.input:
        tensor = value.type.HasField("tensor_type")
        if tensor and not value.type.tensor_type.HasField("shape"):
            raise InputError(
                f"input {value.name!r} has no shape", "give it one: unknown sizes may have names"
            )
    _check_functions(model)
    return [f"{opened} dimensions of -1 are of any size"] if opened else []


def check_versions(model: ModelProto) -> None:
    """Refuses a domain of which two versions are imported: tools differ in which they take."""
    for owner, imports in imports_of(model):
        known: dict[str, int] = {}
        for entry in imports:
            first = known.setdefault(entry.domain, entry.version)
            if first != entry.version:
                raise InputError(
                    f"{owner} imports versions {first} and {entry.version} of "
                    f"{entry.domain or 'ai.onnx'}",
                    "keep the one that it was exported for",
                )


def _check_values(graph: GraphProto) -> int:
    """Returns how many dimensions of -1 there were."""
    return sum(
        _check_value(value, role)
        for role, values in (
            ("input", graph.input),
            ("output", graph.output),
            ("tensor", graph.value_info),
        )
        for value in values
    )


def _check_value(value: ValueInfoProto, role: str) -> int:
    tensor = value.type.tensor_type
    if value.type.HasField("tensor_type") and tensor.elem_type not in _TYPES:
        raise InputError(
            f"{role} {value.name!r} has the unknown element type {tensor.elem_type}", _REEXPORT
        )
    opened = 0
    for index, dim in enumerate(tensor.shape.dim):
        if dim.dim_value == -1:
            dim.ClearField("dim_value")
            opened += 1
        elif dim.dim_value < 0:
            raise InputError(
                f"{role} {value.name!r} has the size {dim.dim_value} in dimension {index}",
                "give it its size, or a name where that is not known",
            )
    return opened


def _check_functions(model: ModelProto) -> None:
    """Refuses functions with outputs that nothing writes, and calls with too much."""
    known = {key_of(function): function for function in model.functions}
    for function in model.functions:
        made = {*function.input, *(name for node in function.node for name in node.output)}
        lost = [name for name in function.output if name not in made]
        if lost:
            raise InputError(
                f"output {lost[0]!r} of local function {function.name!r} is produced by no node",
                "export the model again: a node was lost",
            )
    for node in every_node(model):
        called = known.get(called_by(node))
        if called is not None:
            _check_call(label(node), called, node.input, node.output)


def _check_call(
    call: str, function: FunctionProto, inputs: Iterable[str], outputs: Iterable[str]
) -> None:
    sides = (("inputs", inputs, function.input), ("outputs", outputs, function.output))
    for what, given, taken in sides:
        if len(list(given)) > len(taken):
            raise InputError(
                f"node {call} has {len(list(given))} {what}, and local function "
                f"{function.name!r} has {len(taken)}",
                _REEXPORT,
            )
