"""An If whose condition is known becomes the branch that it takes.

The TorchScript exporter writes them for Python that depends on shapes, and what stands behind one
has no known shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.facts import Facts


def take_branches(graph: gs.Graph, facts: Facts) -> bool:
    """Put the nodes of known branches in the place of their If.

    Returns:
        Whether there were any.
    """
    taken = [(node, _branch(node, facts)) for node in graph.nodes if node.op == "If"]
    known = {id(node): branch for node, branch in taken if branch is not None}
    if not known:
        return False
    names = edit.names(graph)
    ordered: list[gs.Node] = []
    for node in graph.nodes:
        branch = known.get(id(node))
        ordered.extend([node] if branch is None else _inlined(node, branch, names))
    graph.nodes[:] = ordered
    return True


def _branch(node: gs.Node, facts: Facts) -> gs.Graph | None:
    value = facts.value(node.inputs[0])
    if value is None or value.size != 1 or not isinstance(value.ravel()[0], bool):
        return None
    return node.attrs["then_branch" if value.ravel()[0] else "else_branch"]


def _inlined(node: gs.Node, branch: gs.Graph, names: set[str]) -> list[gs.Node]:
    """Return the nodes of ``branch``, which write the outputs of ``node``."""
    for body in edit.subgraphs(node):
        if body is not branch:
            for dropped in _all_nodes(body):
                edit.detach(dropped)
    nodes = list(branch.nodes)
    own = {id(inner) for inner in nodes}
    results = list(zip(node.outputs, branch.outputs, strict=True))
    edit.detach(node)
    handed: dict[int, gs.Tensor] = {}
    for outer, result in results:
        inner = handed.get(id(result), result)  # a branch may return one tensor twice
        source = edit.producer(inner)
        taken = id(result) in handed or inner.name == outer.name
        if source is None or id(source) not in own or taken:
            nodes.append(gs.Node("Identity", f"{outer.name}/branch", {}, [inner], [outer]))
        else:
            _hand_over(source, inner, outer)
            handed[id(inner)] = outer
    for inner in nodes:
        for tensor in inner.outputs:
            _make_unique(tensor, names, {id(outer) for outer, _ in results})
    return nodes


def _hand_over(source: gs.Node, inner: gs.Tensor, outer: gs.Tensor) -> None:
    """Let ``source`` write ``outer`` where it wrote ``inner``."""
    edit.redirect(inner, outer)
    index = next(i for i, tensor in enumerate(source.outputs) if tensor is inner)
    list.clear(inner.inputs)
    list.__setitem__(source.outputs, index, outer)
    list.append(outer.inputs, source)


def _make_unique(tensor: gs.Tensor, names: set[str], kept: set[int]) -> None:
    """Rename what was unique in its branch only: two branches may use one name."""
    if id(tensor) in kept or tensor.is_empty():
        return
    base, count = tensor.name, 1
    while f"{base}/branch_{count}" in names:
        count += 1
    tensor.name = f"{base}/branch_{count}"
    names.add(tensor.name)


def _all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        for body in edit.subgraphs(node):
            yield from _all_nodes(body)
        yield node
