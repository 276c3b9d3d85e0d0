"""One all-reduce where two results are only added: the ranks add their parts first.

Attention and feed-forward layers that stand side by side (GPT-J, Falcon) meet in such a sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.collectives import ALL_REDUCE
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts


def join(graph: gs.Graph, facts: Facts) -> None:
    """Take two all-reduces together wherever their results, or these with a bias, are added.

    What is between a sum and the result has no other reader, so nobody misses what is gone, and
    nothing that the second part is made of can depend on the first sum.

    Args:
        graph: Its nodes are sorted; it is changed.
        facts: The shapes of its tensors as they were.
    """
    outputs = edit.returned(graph)
    for node in list(graph.nodes):
        if node.op != "Add" or not edit.is_standard(node):
            continue
        first, second = (_sum(tensor, outputs) for tensor in node.inputs)
        if first is None or second is None or first is second:
            continue
        shapes = [facts.shape(tensor) for tensor in (*node.outputs, *first.outputs)]
        if shapes[0] is None or any(shape != shapes[0] for shape in shapes):
            continue
        if facts.shape(second.outputs[0]) == shapes[0]:
            _merge(graph, node, first, second)


def _merge(graph: gs.Graph, node: gs.Node, first: gs.Node, second: gs.Node) -> None:
    """Let ``first`` sum both parts, and drop what ``second`` gave to ``node``."""
    parts = [first.inputs[0], second.inputs[0]]
    result = second.outputs[0]
    total = gs.Variable(f"{parts[0].name}/with_{parts[1].name}", parts[0].dtype, parts[0].shape)
    graph.nodes.append(gs.Node("Add", total.name, {}, parts, [total]))
    edit.set_input(first, 0, total)
    reader = result.outputs[0]
    rest = next(tensor for tensor in reader.inputs if tensor is not result)
    edit.detach(second)
    graph.nodes[:] = [other for other in graph.nodes if other is not second]
    target = reader.outputs[0]
    edit.detach(reader)
    reader.op = "Identity"
    reader.inputs.append(rest)
    reader.outputs.append(target)
    edit.sort(graph)


def _sum(tensor: gs.Tensor, outputs: set[int]) -> gs.Node | None:
    """The all-reduce that ``tensor`` is the result of, or its sum with a constant."""
    for node in _alone(tensor, outputs):
        if node.op == ALL_REDUCE and node.domain == "opfuse":
            return node
    return None


def _alone(tensor: gs.Tensor, outputs: set[int]) -> Iterator[gs.Node]:
    """The nodes in front of ``tensor``, while each has one reader and adds at most a constant."""
    node = producer(tensor)
    while node is not None and len(tensor.outputs) == 1 and id(tensor) not in outputs:
        yield node
        computed = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        adds = node.op in ("Add", "Identity") and edit.is_standard(node)
        if not adds or len(computed) != 1:
            return
        tensor, node = computed[0], producer(computed[0])
