"""Of a projection that is computed for all positions and read at a few, only those are computed.

That is the LM head of a decoder whose caller takes the last token: Gather and Slice move in front.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.linear import Linear, linear_of
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

KIND = "last_token_gather"
_UNARY = ("Cast", "Tanh")  # what may stand between, with products and sums of constant numbers
_BINARY = ("Mul", "Div", "Add", "Sub")
_FAR = 1 << 31  # an end that stands for the end of the axis


class _LastToken:
    """Finds what selects from the output of a linear layer."""

    kind = KIND

    def run(self, work: Work) -> None:
        """Move each selection that keeps fewer positions in front of its projection."""
        for node in work.nodes(("Gather", "Slice")):
            between, layer = _layer_behind(work, node.inputs[0])
            if layer is None or not _selects_few(work, node):
                continue
            try:
                taken = [node, *between, *layer.nodes]
                work.replace(KIND, node, taken, _moved(work, node, between, layer))
            except Miss as miss:
                work.miss(KIND, node, miss, [*between, *layer.nodes])


def _layer_behind(work: Work, tensor: gs.Tensor) -> tuple[list[gs.Node], Linear | None]:
    """Return the layer that writes ``tensor``, and the elementwise nodes behind it in order."""
    between: list[gs.Node] = []
    layer = linear_of(tensor)
    while layer is None:
        node = producer(tensor)
        if node is None or not _is_elementwise(work, node):
            return [], None
        between.insert(0, node)
        tensor = node.inputs[0]
        layer = linear_of(tensor)
    return between, layer


def _is_elementwise(work: Work, node: gs.Node) -> bool:
    if node.op in _UNARY:
        return True
    number = work.facts.value(node.inputs[1]) if node.op in _BINARY else None
    same = work.shape(node.inputs[0]) == work.shape(node.outputs[0])
    return number is not None and number.size == 1 and same


def _selects_few(work: Work, node: gs.Node) -> bool:
    """Tell whether ``node`` takes a known, smaller number of positions, and whole features."""
    have = work.shape(node.inputs[0])
    if have is None or len(have) < 2:
        return False
    axis, count = _picked(work, node) if node.op == "Gather" else _sliced(work, node)
    axis %= len(have)
    size = have[axis]
    return count > 0 and axis < len(have) - 1 and (not isinstance(size, int) or count < size)


def _picked(work: Work, node: gs.Node) -> tuple[int, int]:
    """Return the axis of a Gather and how many positions it takes; 0 where that is not known."""
    shape = work.shape(node.inputs[1])
    count = 1 if shape == () else 0
    if shape is not None and len(shape) == 1 and isinstance(shape[0], int):
        count = shape[0]
    return int(node.attrs.get("axis", 0)), count


def _sliced(work: Work, node: gs.Node) -> tuple[int, int]:
    """Return the axis of a Slice and how many positions it takes; 0 where that is not known."""
    known = [work.facts.value(tensor) for tensor in node.inputs[1:]]
    values = [v.ravel()[0] for v in known if v is not None and v.size == 1]
    integers = all(isinstance(value, int) for value in values)
    if len(known) < 3 or len(values) != len(known) or not integers or values[3:] not in ([], [1]):
        return 0, 0
    start, end, axis = values[:3]
    if start < 0 <= end:  # counted from the end, and from the beginning
        return axis, -start if end >= _FAR else 0
    return axis, end - start if end < _FAR else 0


def _moved(work: Work, node: gs.Node, between: list[gs.Node], layer: Linear) -> list[NewNode]:
    like = node.outputs[0]
    picked = work.fresh(like, "positions", work.dtype(layer.x))
    made = [NewNode(node.op, (layer.x, *node.inputs[1:]), (picked,), node.attrs, "")]
    steps: list[tuple[str, tuple[gs.Tensor, ...], dict[str, object]]] = []
    steps.append(("MatMul", (layer.weight,), {}))
    if layer.bias is not None:
        steps.append(("Add", (layer.bias,), {}))
    steps += [(inner.op, tuple(inner.inputs[1:]), dict(inner.attrs)) for inner in between]
    dtypes = [work.dtype(n.outputs[0]) for n in (*layer.nodes, *between)]
    current = picked
    for number, ((op, rest, attrs), dtype) in enumerate(zip(steps, dtypes, strict=True), 1):
        last = number == len(steps)
        out = like if last else work.fresh(like, op.lower(), dtype)
        made.append(NewNode(op, (current, *rest), (out,), attrs, ""))
        current = out
    return made


FUSION = _LastToken()
