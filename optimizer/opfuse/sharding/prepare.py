"""Slices that take a tensor apart become one Split, so that each can be given its own part.

And what the normal form has left as a Gemm becomes a product and a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.facts import Facts


@dataclass(frozen=True)
class _Piece:
    """A Slice of one axis with fixed ends, or a Gather that takes one entry of it."""

    node: gs.Node
    axis: int
    start: int
    stop: int


def join_slices(graph: gs.Graph, facts: Facts) -> None:
    """Write a Split where all who read a tensor slice one axis of it, together all of it.

    Args:
        graph: A sorted graph; it is changed.
        facts: What is known of its tensors, which stay.
    """
    kept = edit.returned(graph)
    for node in list(graph.nodes):
        _untranspose(graph, facts, node, kept)
    sources = {id(node.inputs[0]): node.inputs[0] for node in graph.nodes if node.op == "Slice"}
    for tensor in sources.values():
        readers = [node for node in tensor.outputs if node.op != "Shape"]
        pieces = [_piece(node, facts) for node in readers]
        found = sorted((p for p in pieces if p is not None), key=lambda piece: piece.start)
        if id(tensor) in kept or len(found) < len(readers) or len(found) < 2:
            continue
        if isinstance(tensor, gs.Constant) or not _cover(found, facts, tensor):
            continue
        _split(graph, tensor, found)
    edit.sort(graph)


def write_out_gemms(graph: gs.Graph, facts: Facts) -> None:
    """Write Gemms with a weight as MatMul and Add, so that what they sum over can be split.

    The normal form leaves those whose weight would have to be turned and is large, or is read by
    several; here it is turned in the graph.

    Args:
        graph: A sorted graph; it is changed.
        facts: What is known of its tensors, which stay.
    """
    names = edit.names(graph)
    for node in list(graph.nodes):
        if node.op == "Gemm" and edit.is_standard(node) and _is_plain(node):
            _write_out(graph, facts, node, names)
    edit.sort(graph)


def _is_plain(node: gs.Node) -> bool:
    factors = [node.attrs.get(name, 1.0) for name in ("alpha", "beta")]
    weight = isinstance(node.inputs[1], gs.Constant)
    return weight and factors == [1.0, 1.0] and not node.attrs.get("transA", 0)


def _write_out(graph: gs.Graph, facts: Facts, node: gs.Node, names: set[str]) -> None:
    (result,), (x, weight, *rest) = node.outputs, node.inputs
    bias = rest[0] if rest and not rest[0].is_empty() else None
    turned = bool(node.attrs.get("transB", 0))
    edit.detach(node)
    graph.nodes[:] = [other for other in graph.nodes if other is not node]

    def add(op: str, inputs: list[gs.Tensor], into: gs.Tensor | None = None) -> gs.Tensor:
        out = gs.Variable(unused(f"{result.name}/{op}", names), x.dtype) if into is None else into
        made = gs.Node(
            op, node.name if op == "MatMul" else f"{result.name}/{op}", {}, inputs, [out]
        )
        graph.nodes.append(made)
        facts.infer(made)
        return out

    right = add("Transpose", [weight]) if turned else weight
    if bias is None:
        add("MatMul", [x, right], result)
    else:
        add("Add", [add("MatMul", [x, right]), bias], result)


def _untranspose(graph: gs.Graph, facts: Facts, node: gs.Node, kept: Collection[int]) -> None:
    """Take one entry from what a GatherND has transposed to get at it, and transpose that instead.

    PyTorch's exporter writes ``x[..., [i], :]`` so. What somebody else reads stays: another node,
    or who reads the tensors of the ids ``kept``.
    """
    if node.op != "GatherND" or not edit.is_standard(node) or node.attrs.get("batch_dims", 0):
        return
    turn, index = edit.producer(node.inputs[0]), facts.value(node.inputs[1])
    if turn is None or turn.op != "Transpose" or not edit.is_standard(turn):
        return
    perm = turn.attrs.get("perm")
    if perm is None or index is None or index.shape != (1, 1) or not isinstance(index[0, 0], int):
        return
    (result,) = node.outputs
    name = _fresh(graph, f"{result.name}/entry")
    source, entry = turn.inputs[0], gs.Constant(f"{name}/index", np.array([index[0, 0]]))
    taken = gs.Variable(name, source.dtype)
    (turned,) = turn.outputs
    gone = [node] if len(turned.outputs) > 1 or id(turned) in kept else [node, turn]
    for one in gone:
        edit.detach(one)
    graph.nodes[:] = [one for one in graph.nodes if all(one is not other for other in gone)]
    take = gs.Node("Gather", name, {"axis": perm[0]}, [source, entry], [taken])
    facts.infer(take)
    back = gs.Node("Transpose", f"{name}/turn", {"perm": perm}, [taken], [result])
    graph.nodes.extend([take, back])


def _cover(pieces: list[_Piece], facts: Facts, tensor: gs.Tensor) -> bool:
    """Whether the pieces, in order, are all of one axis, each entry once."""
    axis, shape = pieces[0].axis, facts.shape(tensor)
    ends = [0, *(piece.stop for piece in pieces)]
    meet = all(piece.start == end for piece, end in zip(pieces, ends, strict=False))
    alike = all(piece.axis == axis for piece in pieces)
    return alike and meet and shape is not None and ends[-1] == shape[axis]


def _piece(node: gs.Node, facts: Facts) -> _Piece | None:
    shape = facts.shape(node.inputs[0])
    if node.op not in ("Slice", "Gather") or not edit.is_standard(node) or shape is None:
        return None
    given = [facts.value(tensor) for tensor in node.inputs[1:]]
    if node.op == "Gather":
        return _taken(node, int(node.attrs.get("axis", 0)) % len(shape), given[0], shape)
    if len(given) < 3 or any(value is None or value.size != 1 for value in given):
        return None
    numbers = [value.ravel()[0] for value in given if value is not None]
    axis = numbers[2] % len(shape) if isinstance(numbers[2], int) else None
    if axis is None or not all(isinstance(number, int) for number in (*numbers, shape[axis])):
        return None
    start, stop, step = slice(numbers[0], numbers[1], *numbers[3:]).indices(int(str(shape[axis])))
    return _Piece(node, axis, start, stop) if step == 1 and start < stop else None


def _taken(node: gs.Node, axis: int, index: Any, shape: Sequence[Any]) -> _Piece | None:
    """The one entry that a list of one index takes, which leaves the axis."""
    if index is None or index.shape != (1,) or not isinstance(shape[axis], int):
        return None
    entry = index[0]
    if not isinstance(entry, int) or not -shape[axis] <= entry < shape[axis]:
        return None
    return _Piece(node, axis, entry % shape[axis], entry % shape[axis] + 1)


def _split(graph: gs.Graph, tensor: gs.Tensor, pieces: list[_Piece]) -> None:
    sizes = np.array([piece.stop - piece.start for piece in pieces])
    results = [piece.node.outputs[0] for piece in pieces]
    name = _fresh(graph, f"{tensor.name}/pieces")
    for piece in pieces:
        edit.detach(piece.node)
    gone = {id(piece.node) for piece in pieces}
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]
    inputs = [tensor, gs.Constant(name, sizes)]
    graph.nodes.append(gs.Node("Split", name, {"axis": pieces[0].axis}, inputs, results))


def _fresh(graph: gs.Graph, name: str) -> str:
    """A name that no tensor has."""
    return unused(name, edit.names(graph))


def unused(name: str, names: set[str]) -> str:
    """A name that is not in ``names``, where it is put."""
    while name in names:
        name += "_"
    names.add(name)
    return name
