"""Which nodes of a lowered model only move data in a way that a bundle can copy by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opfuse.engine.tensors import Typed
from opfuse.errors import InputError
from opfuse.graph.protos import BITS, is_external
from opfuse.runtime.abi import MAX_RANK
from opfuse.runtime.copies import Move, Numbers

_LEAST_RUN = 16
"""Bytes that have to lie together in source and target. Below half of what memory gives at once,
copies one by one are slow, and TensorRT transposes by tiles."""
_SOME = 2  # a size that is not known, in the least that lies together
_LAST = 1 << 62  # beyond any axis

Tensors = Mapping[str, TensorProto]


def copies(model: ModelProto, types: Mapping[str, Typed]) -> dict[int, Move]:
    """The nodes that can be copies, by their place in the graph."""
    weights = {item.name: item for item in model.graph.initializer}
    found = {}
    for index, node in enumerate(model.graph.node):
        move = _move(node, types, weights)
        if move is not None and _is_worth_it(move, types):
            found[index] = move
    return found


def _move(node: NodeProto, types: Mapping[str, Typed], weights: Tensors) -> Move | None:
    rule = None if node.domain else _RULES.get(node.op_type)
    known = [types.get(name) for name in (*node.input[:1], *node.output)]
    if rule is None or any(typed is None for typed in known):
        return None
    elements = {typed.element for typed in known if typed is not None}
    ranks = {len(typed.shape) for typed in known if typed is not None}
    if len(elements) > 1 or BITS.get(min(elements), 1) % 8 or len(ranks) > 1:
        return None
    (rank,) = ranks
    if not 0 < rank < MAX_RANK:
        return None
    return rule(node, rank, weights)


def _is_worth_it(move: Move, types: Mapping[str, Typed]) -> bool:
    """Whether enough lies together, however small the sizes are that are not known."""
    shapes = []
    for typed in map(types.get, move.inputs):
        if typed is None:
            return False
        shapes.append([dim if isinstance(dim, int) else _SOME for dim in typed.shape])
    if move.op == "Split":
        axis, sizes = move.numbers["axis"], move.numbers["sizes"]
        assert isinstance(axis, int) and not isinstance(sizes, int)
        shapes[0][axis] = sum(sizes)
    item = BITS[types[move.inputs[0]].element] // 8
    try:
        boxes = move.boxes(list(map(tuple, shapes)), item)
    except InputError:
        return False
    return bool(boxes) and all(box.run >= _LEAST_RUN for box in boxes)


def _concat(node: NodeProto, rank: int, weights: Tensors) -> Move | None:
    return Move("Concat", {"axis": _axis(node, rank)}, tuple(node.input), tuple(node.output))


def _split(node: NodeProto, rank: int, weights: Tensors) -> Move | None:
    sizes = _values(node, 1, weights)
    if sizes is None or len(sizes) != len(node.output):
        return None
    numbers: dict[str, Numbers] = {"axis": _axis(node, rank), "sizes": sizes}
    return Move("Split", numbers, tuple(node.input[:1]), tuple(node.output))


def _slice(node: NodeProto, rank: int, weights: Tensors) -> Move | None:
    starts, ends = _values(node, 1, weights), _values(node, 2, weights)
    if starts is None or ends is None:
        return None
    axes: Sequence[int] | None = range(len(starts))
    if len(node.input) > 3 and node.input[3]:
        axes = _values(node, 3, weights)
    steps: Sequence[int] | None = [1] * len(starts)
    if len(node.input) > 4 and node.input[4]:
        steps = _values(node, 4, weights)
    if axes is None or steps is None or min(steps, default=1) < 1:
        return None
    whole: list[list[int]] = [[0] * rank, [_LAST] * rank, [1] * rank]
    for axis, *own in zip(axes, starts, ends, steps, strict=True):
        for kept, number in zip(whole, own, strict=True):
            kept[axis] = number
    numbers: dict[str, Numbers] = {
        "starts": tuple(whole[0]),
        "ends": tuple(whole[1]),
        "steps": tuple(whole[2]),
    }
    return Move("Slice", numbers, tuple(node.input[:1]), tuple(node.output))


def _transpose(node: NodeProto, rank: int, weights: Tensors) -> Move | None:
    given = _attribute(node, "perm")
    perm = tuple(reversed(range(rank))) if given is None else tuple(given)
    return Move("Transpose", {"perm": perm}, tuple(node.input), tuple(node.output))


_RULES: Mapping[str, Callable[[NodeProto, int, Tensors], Move | None]] = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Transpose": _transpose,
}


def _axis(node: NodeProto, rank: int) -> int:
    found: int = _attribute(node, "axis") or 0
    return found % rank


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _values(node: NodeProto, at: int, weights: Tensors) -> tuple[int, ...] | None:
    """The integers of an input that is a constant of the model; None where they are not known."""
    tensor = weights.get(node.input[at]) if at < len(node.input) else None
    if tensor is None or is_external(tensor):
        return None
    return tuple(map(int, numpy_helper.to_array(tensor).reshape(-1)))
