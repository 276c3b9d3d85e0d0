"""Operators that a runtime computes otherwise than ONNX defines them, written out as defined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto
from onnx.inliner import inline_selected_functions

from opfuse.graph.protos import all_nodes, every_node, subgraphs

# The inputs of which one makes a runtime's kernel doubtful: a mask and what follows, the angles.
_DOUBTFUL = {"Attention": 3, "RotaryEmbedding": 1, "Swish": 0}
_DOMAIN = "opfuse.defined"

Types = dict[str, TypeProto]


def as_defined(model: ModelProto) -> ModelProto:
    """The model with what the runtimes' kernels take amiss written out as ONNX defines it.

    onnxruntime's for Attention of opset 23 and 24 gives 0 where a row of an additive mask is the
    lowest number throughout, not the mean of the values, and takes no mask of one row for all; its
    own for RotaryEmbedding takes neither angles nor positions of one batch for all; it has none for
    Swish of opset 25. The evaluator of ONNX 1.23 takes a mask of one row for that of the first
    query where Attention is causal. A node is left as it is where the type of an input is not
    known, as behind another domain's.
    """
    found = {("", node.op_type) for node in every_node(model) if _is_doubtful(node)}
    if not found:
        return model
    callers = _callers(model, found)
    try:
        flat = inline_selected_functions(model, sorted(callers)) if callers else model
        copy = onnx.shape_inference.infer_shapes(flat)
    except (RuntimeError, onnx.shape_inference.InferenceError):
        return model
    known = {entry.domain: entry.version for entry in model.opset_import}
    opset = known.get("", known.get("ai.onnx", 0))
    functions = list(_write_out(copy.graph, {}, opset, count()))
    if not functions:
        return model
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(flat.graph.value_info)
    copy.functions.extend(functions)
    copy.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    called = [(function.domain, function.name) for function in functions]
    written = inline_selected_functions(copy, called)
    kept = [entry for entry in written.opset_import if entry.domain != _DOMAIN]
    del written.opset_import[:]
    written.opset_import.extend(kept)
    return written


def _is_doubtful(node: NodeProto) -> bool:
    first = _DOUBTFUL.get(node.op_type)
    return not node.domain and first is not None and any(node.input[first:])


def _callers(model: ModelProto, called: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the local functions from which one of ``called`` is reached."""
    found = set(called)
    while True:
        callers = {
            (function.domain, function.name)
            for function in model.functions
            if any((node.domain, node.op_type) in found for node in all_nodes(function.node))
        }
        if callers <= found:
            return callers
        found |= callers


def _write_out(
    graph: GraphProto, outer: Types, opset: int, numbers: Iterator[int]
) -> Iterator[FunctionProto]:
    """Make doubtful nodes calls of functions, which are yielded; bodies see the ``outer`` types."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    types = outer | {info.name: info.type for info in infos}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    yield from _calls(graph.node, types, opset, numbers)


def _calls(
    nodes: Iterable[NodeProto], types: Types, opset: int, numbers: Iterator[int]
) -> Iterator[FunctionProto]:
    for node in nodes:
        for graph in subgraphs(node):
            yield from _write_out(graph, types, opset, numbers)
        function = _definition(node, types, opset) if _is_doubtful(node) else None
        if function is not None:
            node.domain, node.op_type = _DOMAIN, f"{node.op_type}_{next(numbers)}"
            function.domain, function.name = node.domain, node.op_type
            # Written for the opset that the operator is of; what it is written in is as in this.
            del function.opset_import[:]
            function.opset_import.append(onnx.helper.make_opsetid("", opset))
            yield function


def _definition(node: NodeProto, types: Types, opset: int) -> FunctionProto | None:
    """What ONNX says that this node computes, or None where it depends on a type not known."""
    given = [types.get(name, TypeProto()) for name in node.input]
    if any(
        name and not kind.WhichOneof("value") for name, kind in zip(node.input, given, strict=True)
    ):
        return None
    kinds = [kind.SerializeToString() for kind in given]
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset)
        since, wanted = schema.since_version, node.SerializeToString()
        written = (
            schema.function_body.SerializeToString()
            if schema.has_function
            else schema.get_context_dependent_function_with_opset_version(since, wanted, kinds)
        )
    except (onnx.defs.SchemaError, RuntimeError):
        return None
    function = FunctionProto.FromString(written)
    return function if function.node else None
