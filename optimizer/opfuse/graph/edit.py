"""Surgery on a ``gs.Graph`` by identity.

onnx-graphsurgeon's lists find elements with ``==``, and ``gs.Node.__eq__`` compares structure: with
two equal nodes on one tensor, ``list.remove`` may take the wrong one. Everything here uses ``is``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx_graphsurgeon as gs


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """Return the node that writes ``tensor``; None for graph inputs and constants."""
    node: gs.Node | None = tensor.inputs[0] if tensor.inputs else None
    return node


def is_standard(node: gs.Node) -> bool:
    """Tell whether ``node`` is an operator of the default ONNX domain."""
    return node.domain in (None, "", "ai.onnx")


def maker(tensor: gs.Tensor) -> gs.Node | None:
    """Return the node that writes ``tensor`` where its operator is ONNX's own: names say no more.

    A user's domain may have a ``Range`` or a ``Less`` of its own.
    """
    node = producer(tensor)
    return node if node is not None and is_standard(node) else None


def subgraphs(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the bodies that a control-flow node carries in its attributes."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield value
        elif isinstance(value, list) and value and isinstance(value[0], gs.Graph):
            yield from value


def every_node(graph: gs.Graph) -> Iterator[gs.Node]:
    """Yield the nodes of ``graph`` and of all bodies in it."""
    for node in graph.nodes:
        yield node
        for body in subgraphs(node):
            yield from every_node(body)


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield every tensor that ``node`` reads, those that its subgraphs capture included."""
    yield from node.inputs
    for body in subgraphs(node):
        for inner in body.nodes:
            yield from reads(inner)
        yield from body.outputs


def set_input(node: gs.Node, index: int, tensor: gs.Tensor) -> None:
    """Let ``node`` read ``tensor`` at ``index``."""
    _forget(node.inputs[index].outputs, node)
    list.__setitem__(node.inputs, index, tensor)
    list.append(tensor.outputs, node)


def detach(node: gs.Node) -> None:
    """Cut ``node`` from all tensors that it reads and writes; it may be dropped afterwards."""
    for tensor in node.inputs:
        _forget(tensor.outputs, node)
    for tensor in node.outputs:
        _forget(tensor.inputs, node)
    list.clear(node.inputs)
    list.clear(node.outputs)


def release_output(node: gs.Node, tensor: gs.Tensor) -> None:
    """Let another node become the producer of ``tensor``, so that it keeps its name and readers."""
    _forget(tensor.inputs, node)
    _forget(node.outputs, tensor)


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of ``old`` read ``new`` instead; graph outputs are not touched."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                set_input(node, index, new)


def _forget(sequence: list[Any], item: object) -> None:
    for index, element in enumerate(sequence):
        if element is item:
            list.__delitem__(sequence, index)
            return


def captured(graph: gs.Graph) -> set[int]:
    """Return the ids of all tensors that subgraphs of ``graph`` return.

    One that a subgraph returns without computing it has no reader that could be redirected; those
    that its nodes read have.
    """
    found: set[int] = set()
    pending = [body for node in graph.nodes for body in subgraphs(node)]
    while pending:
        body = pending.pop()
        found.update(id(tensor) for tensor in body.outputs)
        pending.extend(inner for node in body.nodes for inner in subgraphs(node))
    return found


def returned(graph: gs.Graph) -> set[int]:
    """Return the ids of what the graph or its subgraphs return: it is read without a reader."""
    return {id(tensor) for tensor in graph.outputs} | captured(graph)


def sweep(graph: gs.Graph) -> None:
    """Drop every node that no graph output depends on."""
    live: set[int] = set()
    pending = [node for tensor in graph.outputs for node in tensor.inputs]
    while pending:
        node = pending.pop()
        if id(node) in live:
            continue
        live.add(id(node))
        pending.extend(source for tensor in reads(node) for source in tensor.inputs)
    for node in graph.nodes:
        if id(node) not in live:
            detach(node)
    graph.nodes[:] = [node for node in graph.nodes if id(node) in live]


def sort(graph: gs.Graph) -> None:
    """Order the nodes so that each stands behind its producers, in linear time.

    The order is the depth-first one from the present order, so a sorted list keeps its order and
    equal graphs give equal files.
    """
    state: dict[int, bool] = {}
    ordered: list[gs.Node] = []
    own = {id(node) for node in graph.nodes}
    for root in graph.nodes:
        stack: list[tuple[gs.Node, Iterator[gs.Node]]] = []
        if id(root) not in state:
            state[id(root)] = False
            stack.append((root, _sources(root, own)))
        while stack:
            node, sources = stack[-1]
            child = next((s for s in sources if id(s) not in state), None)
            if child is None:
                stack.pop()
                ordered.append(node)
            else:
                state[id(child)] = False
                stack.append((child, _sources(child, own)))
    graph.nodes[:] = ordered


def _sources(node: gs.Node, own: set[int]) -> Iterator[gs.Node]:
    return iter([source for tensor in reads(node) for source in tensor.inputs if id(source) in own])


def names(graph: gs.Graph) -> set[str]:
    """Return the names of all tensors, those of subgraphs included."""
    found: set[str] = set()
    for node in graph.nodes:
        for tensor in node.outputs:
            found.add(tensor.name)
        for tensor in reads(node):
            found.add(tensor.name)
        for body in subgraphs(node):
            found |= names(body)
    found.update(tensor.name for tensor in _ends(graph))
    return found


def _ends(graph: gs.Graph) -> Iterable[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
