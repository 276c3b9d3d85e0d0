"""Lets the proof run one rank of several: what its collectives give where all ranks are like it.

Two forms of a rank's graph are compared with the same stand-ins in both. They are for proofs alone
and stand in no file: the sums that they make are not those of the ranks.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto

from opfuse.graph.collectives import ALL_GATHER, ALL_REDUCE, COLLECTIVES, DOMAIN, collectives
from opfuse.graph.protos import opset_of


def stand_in(model: ModelProto) -> None:
    """Define the collectives of ``model``: a sum of as many equal parts, and as many side by side.

    Args:
        model: It gets the functions that it calls and does not have; else it stays as it is.
    """
    sizes = [_group_size(node) for node in collectives(model)]
    if not sizes:
        return
    defined = {function.name for function in model.functions if function.domain == DOMAIN}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    opset = opset_of(model, 17)
    for op in COLLECTIVES:
        if op in called and op not in defined:
            model.functions.append(_function(op, max(sizes), opset))


def _function(op: str, ranks: int, opset: int) -> onnx.FunctionProto:
    parts = ", ".join(["x"] * ranks)
    attributes, body = {
        ALL_REDUCE: ("group_size, reduce_op", f"y = Sum({parts})"),
        ALL_GATHER: ("group_size, axis", f"y = Concat<axis: int = @axis>({parts})"),
    }[op]
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{op} <{attributes}, plugin_namespace> (x) => (y) {{\n{body}\n}}"
    )


def _group_size(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group_size"), 1)
