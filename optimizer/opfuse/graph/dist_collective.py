"""TensorRT's own form of the collectives: its operator ``DistCollective`` (10.16 and later).

It gathers along the first axis. TensorRT-RTX 1.7 was seen to want ``root`` -1, ``reduce_op``
"none" where nothing is summed, and ``group_size`` as many as there are ``groups``. Whoever runs the
engine gives it a communicator (``IExecutionContext::setCommunicator``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import ModelProto, NodeProto, helper

from opfuse.graph.collectives import ALL_REDUCE, COLLECTIVES, DOMAIN
from opfuse.graph.protos import all_nodes

NATIVE = "DistCollective"


def every_node(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the graph and of the functions."""
    yield from all_nodes(model.graph.node)
    for function in model.functions:
        yield from all_nodes(function.node)


def dist_collective(node: NodeProto, ranks: int, opset: int) -> list[NodeProto]:
    """What stands for an ``AllReduce`` or an ``AllGather`` of ``ranks`` ranks."""
    name, (x,), (y,) = node.name or node.output[0], node.input, node.output
    if node.op_type == ALL_REDUCE:
        return [_collective(f"{name}/sum", x, y, "all_reduce", "sum", ranks)]
    axis = next((int(item.i) for item in node.attribute if item.name == "axis"), 0)
    gathered = f"{y}/gathered"
    parts = [f"{y}/of_rank_{rank}" for rank in range(ranks)]
    count: dict[str, Any] = {"num_outputs": ranks} if opset >= 18 else {}
    return [
        _collective(f"{name}/gather", x, gathered, "all_gather", "none", ranks),
        helper.make_node("Split", [gathered], parts, f"{name}/split", axis=0, **count),
        helper.make_node("Concat", parts, [y], f"{name}/join", axis=axis),
    ]


def rewrite_bodies(model: ModelProto, ranks: int, opset: int) -> None:
    """Let the functions of ``model`` have the collectives in them in TensorRT's form.

    Those that only plugin nodes stand for go: TensorRT reads no body of theirs.
    """
    called = {(node.domain, node.op_type) for node in every_node(model) if not _is_plugin(node)}
    functions = list(model.functions)
    model.ClearField("functions")
    for function in functions:
        speaks = any(node.op_type in COLLECTIVES for node in function.node)
        if speaks and (function.domain, function.name) not in called:
            continue
        made = model.functions.add()
        made.CopyFrom(function)
        if speaks:
            del made.node[:]
            made.node.extend(_rewritten(function.node, ranks, opset))


def _rewritten(nodes: Iterable[NodeProto], ranks: int, opset: int) -> Iterator[NodeProto]:
    for node in nodes:
        if node.domain == DOMAIN and node.op_type in COLLECTIVES:
            yield from dist_collective(node, ranks, opset)
        else:
            yield node


def _is_plugin(node: NodeProto) -> bool:
    return any(item.name == "plugin_namespace" for item in node.attribute)


def sum_apart(node: NodeProto, ranks: int, opset: int) -> tuple[list[NodeProto], NodeProto]:
    """An ``AllReduceAddNorm`` as the sum over the ranks and the bias, and the fused norm behind."""
    x, residual, *weights = node.input
    layer = any(item.name == "norm" and item.s == b"layer" for item in node.attribute)
    kept = 2 if layer else 1
    total = f"{node.output[1]}/over_ranks"
    reduce = helper.make_node(ALL_REDUCE, [x], [total], f"{node.name}/{ALL_REDUCE}")
    before = dist_collective(reduce, ranks, opset)
    for bias in weights[kept:]:
        biased = f"{total}/biased"
        before.append(helper.make_node("Add", [total, bias], [biased], f"{node.name}/bias"))
        total = biased
    rest = NodeProto.FromString(node.SerializeToString())
    rest.op_type = "AddLayerNorm" if layer else "AddRmsNorm"
    del rest.input[:]
    rest.input.extend([total, residual, *weights[:kept]])
    return before, rest


def _collective(name: str, x: str, y: str, operation: str, reduce_op: str, ranks: int) -> NodeProto:
    return helper.make_node(
        NATIVE,
        [x],
        [y],
        name,
        collective_operation=operation,
        reduce_op=reduce_op,
        root=-1,
        nb_rank=ranks,
        groups=list(range(ranks)),
        group_size=ranks,
    )
