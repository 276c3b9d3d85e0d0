"""The two large matrices at the ends of a language model, each rank with its share of the words.

The embedding gives zeros for the words of other ranks, and the sum over the ranks is the row. The
head makes each rank's scores, which are then gathered, so that every rank returns all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.collectives import ALL_GATHER
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts
from opfuse.graph.rewriter import numpy_dtype
from opfuse.graph.weights import onnx_dtype
from opfuse.sharding.choose import is_product
from opfuse.sharding.cut import Cutter
from opfuse.sharding.layout import Shard, Stays, even, static

_BEHIND = ("Add", "Cast", "Identity", "Mul", "Div")  # what may stand between a head and its output
_BEFORE = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze")


def heads(graph: gs.Graph, facts: Facts, ranks: int) -> tuple[dict[int, Shard], dict[str, str]]:
    """The graph outputs that heads make, with each rank's part, and why others are not.

    A head is a product with a weight whose result reaches an output of the graph alone, with
    nothing but a bias, a scale, or a cast between.
    """
    found: dict[int, Shard] = {}
    left: dict[str, str] = {}
    for tensor in graph.outputs:
        head, shape = _head(tensor), facts.shape(tensor)
        if head is None or shape is None or facts.dtype(tensor) not in FLOATS:
            continue
        try:
            size = static(shape[-1], "its vocabulary")
            found[id(tensor)] = even(len(shape) - 1, size, ranks)
        except Stays as stays:
            left[head.name or tensor.name] = str(stays)
    return found, left


FLOATS = (1, 10, 11, 16)  # onnx.TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16


def _head(tensor: gs.Tensor) -> gs.Node | None:
    node = producer(tensor)
    while node is not None and node.op in _BEHIND and edit.is_standard(node):
        computed = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        node = producer(computed[0]) if len(computed) == 1 else None
    return node if node is not None and node.op == "MatMul" and is_product(node) else None


def gather(cutter: Cutter, wanted: Mapping[int, Shard], split: Mapping[int, Shard]) -> list[str]:
    """Put the scores together behind every head that is split; returns the outputs' names."""
    done = []
    for tensor in cutter.graph.outputs:
        shard, node = wanted.get(id(tensor)), producer(tensor)
        if shard is None or id(tensor) not in split or node is None:
            continue
        own = cutter.released(node, tensor)
        if tensor.shape is not None:
            whole = sum(len(part) for part in shard.parts)
            tensor.shape = [*tensor.shape[:-1], whole]
        cutter.collective(ALL_GATHER, own, tensor, {"axis": shard.axis})
        done.append(tensor.name)
    return done


def embedding(graph: gs.Graph, facts: Facts) -> gs.Node | None:
    """The node that looks words up: it gathers rows of the largest table by an input's numbers."""
    found = [node for node in graph.nodes if _looks_up(node, graph, facts)]
    return max(found, key=lambda node: int(np.prod(node.inputs[0].shape)), default=None)


def _looks_up(node: gs.Node, graph: gs.Graph, facts: Facts) -> bool:
    if node.op != "Gather" or not edit.is_standard(node) or int(node.attrs.get("axis", 0)) != 0:
        return False
    table, words = node.inputs
    if not isinstance(table, gs.Constant) or len(table.shape) != 2:
        return False
    if onnx_dtype(table) not in FLOATS or facts.shape(words) is None:
        return False
    while (before := producer(words)) is not None and before.op in _BEFORE:
        words = before.inputs[0]
    return any(words is tensor for tensor in graph.inputs)


def split_embedding(cutter: Cutter, node: gs.Node) -> None:
    """Let each rank hold its share of the rows of a table.

    Raises:
        Stays: The ranks do not divide the rows; nothing is changed then.
    """
    table, words = node.inputs
    size, ranks = int(table.shape[0]), cutter.ranks
    shard = even(0, size, ranks)
    kind, floating = numpy_dtype(cutter.facts.dtype(words)), numpy_dtype(onnx_dtype(table))
    count, name = shard.local, node.outputs[0].name
    zero = cutter.constant(f"{name}/zero", np.zeros((), kind))
    limit = cutter.constant(f"{name}/count", np.array(count, kind))
    rows = cutter.constant(f"{name}/rows", np.array(size, kind))
    start = cutter.numbers(f"{name}/start", [np.array(r * count, kind) for r in range(ranks)])

    def made(op: str, *inputs: gs.Tensor) -> gs.Tensor:
        result = cutter.variable(f"{name}/{op}")
        cutter.node(op, list(inputs), {}, result)
        return result

    from_end = made("Where", made("Less", words, zero), made("Add", words, rows), words)
    place = made("Sub", from_end, start)
    mine = made("And", made("GreaterOrEqual", place, zero), made("Less", place, limit))
    edit.set_input(node, 0, cutter.part(table, shard))
    edit.set_input(node, 1, made("Where", mine, place, zero))
    result = node.outputs[0]
    own = cutter.released(node, result)
    last = cutter.constant(f"{name}/last", np.array([-1]))
    nothing = cutter.constant(f"{name}/nothing", np.zeros((), floating))
    cutter.sum(made("Where", made("Unsqueeze", mine, last), own, nothing), result)
