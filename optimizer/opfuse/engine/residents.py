"""Which tensors TensorRT has in memory while it runs a graph, and from which node to which.

TensorRT fuses what is small into kernels around it. What it has to keep is taken to be what
products read and write, and what a later kernel reads again, such as a residual. A group of small
nodes reads its inputs while it writes its outputs, so masked scores of attention are there until
the probabilities are; what it makes of one tensor alone takes that one's place.

Attention itself becomes one kernel where nothing but a scale, a mask, and the softmax stands
between its products; then neither lies in memory. Anything else there, such as a guard against NaN,
keeps TensorRT from it.

On an H100, TensorRT for RTX 1.4 had in MB (and by this) between the kernels of graphs that torch
had exported with its eager attention, and with the guarded one: BERT-base 45.9 (33.0) and 48.3
(47.2), ViT-B/16 77.5 (67.8) and 79.9 (68.5), Llama of 4 layers 127.9 (109.6) and 591.2 (554.2) for
2048 tokens, and 8.3 (16.8) and 8.4 (16.9) for one behind 2048.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto

from opfuse.engine.cut import HEAVY
from opfuse.engine.parts import reads

_LARGE = 1 << 20  # bytes
_PRODUCTS = frozenset({"MatMul", "Einsum"})
_SAME = frozenset({"Cast", "CastLike", "Identity"})
_BEFORE = _SAME | {"Add", "Div", "Mul", "Sub", "Where"}


def residents(graph: GraphProto, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The first and the last node that needs each tensor that lies in memory, by its name.

    Args:
        graph: It has no calls of local functions. Its inputs, outputs, and weights are left out.
        sizes: The bytes of its tensors, as far as they are known.
    """
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    inside = _inside_attention(nodes, maker)
    ends = {item.name for item in (*graph.input, *graph.output, *graph.initializer)}
    kept = _kept(nodes, maker, inside) - ends
    # What is in memory of all that a tensor is made from. A large mask stands for itself, whether
    # it is an input, a weight, or made from nothing: it is read beside the scores.
    behind = {name: {name} for name in ends if sizes.get(name, 0) >= _LARGE}
    found: dict[str, tuple[int, int]] = {}
    replaced: list[tuple[int, str]] = []
    for index, node in enumerate(nodes):
        needed = set().union(*(behind.get(name, ()) for name in _data(node)))
        written = [name for name in node.output if name]
        own = kept.intersection(written)
        for name in kept.intersection(own.union(needed)):
            found[name] = found.get(name, (index, index))[0], index
        if node.op_type in HEAVY and not inside.issuperset(written):
            needed = set()
        for name in written:
            is_mask = not needed and sizes.get(name, 0) >= _LARGE
            behind[name] = {name} if name in own or is_mask else needed
        if len(needed) == 1 and {sizes.get(name) for name in own} == {sizes.get(*needed)}:
            replaced += [(index, name) for name in kept.intersection(needed)]
    for index, source in replaced:
        first, last = found[source]
        if first < last == index:
            found[source] = first, last - 1
    return found


def _data(node: NodeProto) -> list[str]:
    """What a node reads the values of, not the type or the shape alone."""
    if node.op_type in ("Shape", "Size"):
        return []
    names = reads(node)
    return names[:1] if node.op_type == "CastLike" else names


def _kept(nodes: Sequence[NodeProto], maker: Mapping[str, int], inside: set[str]) -> set[str]:
    """What products read and write, and what is read behind the next product again."""
    phases, phase = [], 0
    kept: set[str] = set()
    for node in nodes:
        names = _data(node)
        if node.op_type in HEAVY:
            kept.update(names, filter(None, node.output))
            phase += not inside.issuperset(node.output)
        phases.append(phase)
        kept.update(name for name in names if name in maker and phases[maker[name]] < phase)
    return kept - inside


def _inside_attention(nodes: Sequence[NodeProto], maker: Mapping[str, int]) -> set[str]:
    """The tensors between the products of every attention that TensorRT makes one kernel of."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in nodes:
        if node.op_type == "Softmax":
            above, below = _from_product(node.input[0], nodes, maker), _to_product(node, readers)
            if above and below:
                found.update(above, below)
    return found


def _from_product(name: str, nodes: Sequence[NodeProto], maker: Mapping[str, int]) -> list[str]:
    """The tensors from a product to this one, through a scale and a mask; empty without one."""
    below, queue = {name: ""}, [name]
    for at in queue:  # which grows meanwhile
        node = nodes[maker[at]] if at in maker else None
        if node is not None and node.op_type in _PRODUCTS:
            path = [at]
            while path[-1] != name:
                path.append(below[path[-1]])
            return path
        if node is not None and node.op_type in _BEFORE:
            fresh = [source for source in reads(node) if source not in below]
            below |= dict.fromkeys(fresh, at)
            queue += fresh
    return []


def _to_product(node: NodeProto, readers: Mapping[str, Sequence[NodeProto]]) -> list[str]:
    """The tensors from a node to the one product that reads them; empty without one."""
    path = []
    while True:
        path.append(node.output[0])
        following = readers.get(node.output[0], ())
        if len(following) != 1:
            return []
        (node,) = following
        if node.op_type in _PRODUCTS:
            return path
        if node.op_type not in _SAME:
            return []
