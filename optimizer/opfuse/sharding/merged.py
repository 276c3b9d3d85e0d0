"""Batch and heads that lie on one axis get one each.

``torch.nn.MultiheadAttention`` lays the heads beside the batch, [sequence, batch * heads, size],
and turns that. Some of the heads are no part of such an axis that could be named.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts, Shape
from opfuse.graph.pattern import OPFUSE
from opfuse.sharding.prepare import unused

_TURNED = [1, 0, 2]
_OWN = {0: (0,), 1: (1, 2), 2: (3,)}  # the axes of [sequence, batch * heads, size], apart
_BY_HEADS = (1, 2, 0, 3)


@dataclass(frozen=True)
class _Laid:
    """What was laid so, and turned.

    Attributes:
        source: [sequence, batch, heads * size].
        shape: [sequence, batch, heads, size].
        perm: How it is turned, where it has these axes.
    """

    source: gs.Tensor
    shape: Shape
    perm: tuple[int, ...]

    @property
    def turned(self) -> Shape:
        """``shape`` behind that."""
        return tuple(self.shape[axis] for axis in self.perm)


def part(graph: gs.Graph, facts: Facts) -> None:
    """Let every attention that reads heads laid beside the batch have them on an axis of their own.

    Args:
        graph: A sorted graph; it is changed.
        facts: What is known of its tensors, which stay.
    """
    kept = edit.returned(graph)
    for node in list(graph.nodes):
        if node.op == "FlashAttention" and node.domain == OPFUSE:
            _of_attention(graph, facts, node, kept)
        elif _is(node, "Reshape") and (laid := _laid(node.inputs[0], facts)) is not None:
            result = node.outputs[0]
            if facts.shape(result) == laid.turned:
                edit.detach(node)
                _apart(graph, facts, laid, result)
    edit.sweep(graph)
    edit.sort(graph)


def _is(node: gs.Node | None, op: str) -> bool:
    return node is not None and node.op == op and edit.is_standard(node)


def _laid(tensor: gs.Tensor, facts: Facts) -> _Laid | None:
    """What ``tensor``, such as [batch * heads, sequence, size], was, if it is that."""
    turn = producer(tensor)
    if turn is None or not _is(turn, "Transpose") or len(turn.attrs.get("perm", ())) != len(_OWN):
        return None
    beside = producer(turn.inputs[0])
    if beside is None or not _is(beside, "Reshape"):
        return None
    source = beside.inputs[0]
    old, new = facts.shape(source), facts.shape(beside.outputs[0])
    if old is None or new is None or not len(old) == len(new) == len(_OWN):
        return None
    width, size = old[2], new[2]
    if not isinstance(width, int) or not isinstance(size, int) or size < 1 or width % size:
        return None
    heads = width // size
    # So the first axis is the same too, though a traced model may have a number there.
    if new[1] != heads * old[1]:
        return None
    perm = tuple(own for axis in turn.attrs["perm"] for own in _OWN[int(axis)])
    return _Laid(source, (new[0], old[1], heads, size), perm)


def _apart(graph: gs.Graph, facts: Facts, laid: _Laid, result: gs.Tensor) -> None:
    """Let ``result`` be ``laid.source`` with an axis for the heads, and turned."""
    names = edit.names(graph)
    sizes = np.array([0, 0, *map(int, laid.shape[2:])])  # type: ignore[arg-type]
    shape = gs.Constant(unused(f"{result.name}/sizes", names), sizes)
    heads = gs.Variable(unused(f"{result.name}/heads", names), laid.source.dtype)
    split = gs.Node("Reshape", heads.name, {}, [laid.source, shape], [heads])
    turn = gs.Node("Transpose", f"{heads.name}/turn", {"perm": [*laid.perm]}, [heads], [result])
    for node in (split, turn):
        graph.nodes.append(node)
        facts.infer(node)


def _of_attention(graph: gs.Graph, facts: Facts, node: gs.Node, kept: Collection[int]) -> None:
    """Give an attention of one head, whose batch is batch * heads, the heads."""
    one = node.attrs["num_heads"] == node.attrs["kv_num_heads"] == len(node.outputs) == 1
    if not one or len(node.inputs) != 3 or node.attrs.get("slopes"):
        return
    found = [_one_head(tensor, facts) for tensor in node.inputs]
    given = [laid for laid in found if laid is not None and laid.perm == _BY_HEADS]
    behind = _behind(node, facts, kept)
    if behind is None or len(given) < 3 or len({laid.shape[1:3] for laid in given}) > 1:
        return
    names = edit.names(graph)
    for index, laid in enumerate(given):
        own = gs.Variable(unused(f"{node.inputs[index].name}/by_heads", names), laid.source.dtype)
        _apart(graph, facts, laid, own)
        edit.set_input(node, index, own)
    node.attrs |= dict.fromkeys(("num_heads", "kv_num_heads"), given[0].shape[2])
    result = node.outputs[0]
    own, turned = (
        gs.Variable(unused(f"{result.name}/{what}", names), result.dtype)
        for what in ("by_heads", "turned")
    )
    edit.release_output(node, result)
    node.outputs.append(own)
    turn = gs.Node("Transpose", turned.name, {"perm": [2, 0, 1, 3]}, [own], [turned])
    graph.nodes.append(turn)
    for made in (node, turn):
        facts.infer(made)
    edit.set_input(behind, 0, turned)


def _one_head(tensor: gs.Tensor, facts: Facts) -> _Laid | None:
    """What was laid beside the batch, where ``tensor`` is that with an axis for the one head."""
    node = producer(tensor)
    if node is None or not _is(node, "Unsqueeze") or not _is_one(node.inputs[1], facts):
        return None
    return _laid(node.inputs[0], facts)


def _behind(node: gs.Node, facts: Facts, kept: Collection[int]) -> gs.Node | None:
    """The Reshape that takes the heads from beside the batch again, if it alone reads them."""
    squeeze = _reader(node.outputs[0], "Squeeze", kept)
    if squeeze is None or len(squeeze.inputs) < 2 or not _is_one(squeeze.inputs[1], facts):
        return None
    turn = _reader(squeeze.outputs[0], "Transpose", kept)
    if turn is None or turn.attrs.get("perm") != _TURNED:
        return None
    found = _reader(turn.outputs[0], "Reshape", kept)
    sizes = None if found is None else facts.value(found.inputs[1])
    # A 0 copies the size of an axis: that of the sequence stays the first.
    return None if sizes is None or any(size == 0 for size in sizes.ravel()[1:]) else found


def _reader(tensor: gs.Tensor, op: str, kept: Collection[int]) -> gs.Node | None:
    """The one reader of ``tensor``, where it is an ``op``."""
    node = tensor.outputs[0] if len(tensor.outputs) == 1 and id(tensor) not in kept else None
    return node if _is(node, op) else None


def _is_one(axes: gs.Tensor, facts: Facts) -> bool:
    value = facts.value(axes)
    return value is not None and value.tolist() == [1]
