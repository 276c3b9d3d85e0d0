"""What the inputs of a subgraph are, told from the operators that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from opfuse.graph.attention_op import LENGTHS

LAST_KEY, ALL_KEYS = 5, 6  # inputs of com.microsoft's GroupQueryAttention

Shapes = Mapping[str, tuple[int, ...]]

_SOFTMAX = frozenset({"Softmax", "Attention", "MaskedSoftmax", "FlashAttention", "PackedAttention"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "ReduceMean", "RmsNorm"})
_SCALED = frozenset({"MatMul", "Gemm", "Conv", "Einsum"}) | _SOFTMAX
# Operators that a value passes on its way without becoming another quantity.
_PASS = frozenset(
    {
        *("Cast", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Transpose"),
        *("Identity", "Neg", "Not", "Concat", "Tile"),
    }
)
_ELEMENTWISE = _PASS | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Min", "Max"}
# The first input that is a mask.
_MASKED = {"Attention": 3, "FlashAttention": 3, "MaskedSoftmax": 1, "PackedAttention": 1}
_LENGTHS = {"Attention": LENGTHS}  # the input that says how many keys each batch has
_POSITIONS = 3  # the input of ai.onnx RotaryEmbedding that indexes its tables
# What tells from numbers of keys, one of each batch, which of them a query sees.
_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_COUNTED = _PASS | {"Add", "Sub", "Max"}  # what such numbers pass on their way
_GQA = "GroupQueryAttention"
# What a mask, or a number of keys of which a model takes one away itself, passes on its way to it.
_SUMMED = _PASS | {"Add", "Sub", "ReduceSum"}
_KEYS = 5  # fewer than most draws have, so that the end is among them


@dataclass(frozen=True)
class Roles:
    """How to draw the inputs of a model.

    Attributes:
        masks: Additive float masks and boolean masks of attention scores.
        bounds: For integer inputs that index something: the first index that is too large.
        softmax: Whether a softmax is computed.
        scale_free: Whether magnitudes near the limit of the type have a meaningful result: norms.
    """

    masks: frozenset[str]
    bounds: Mapping[str, int]
    softmax: bool
    scale_free: bool


class Flow:
    """Who reads what in a graph, followed forwards."""

    def __init__(self, graph: GraphProto) -> None:
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def reached(self, name: str, through: frozenset[str]) -> Iterator[tuple[NodeProto, str]]:
        """Every (node, name it reads) that ``name`` arrives at through operators ``through``."""
        pending, seen = [name], {name}
        while pending:
            value = pending.pop()
            for node in self.readers.get(value, ()):
                yield node, value
                if node.op_type in through:
                    new = [out for out in node.output if out not in seen]
                    seen.update(new)
                    pending.extend(new)

    def bound(self, name: str, shapes: Shapes) -> int | None:
        """Return what its values are below, or None.

        That is the length of the shortest table that it indexes, and one more than the keys that it
        counts, of those tensors with known ``shapes``.
        """
        found = []
        for node, value in self.reached(name, _PASS):
            if node.op_type == "Gather" and node.input[1] == value and node.input[0] in shapes:
                found.append(shapes[node.input[0]][_axis(node)])
            turns = (node.domain, node.op_type) == ("", "RotaryEmbedding")
            if turns and value in node.input[_POSITIONS:] and node.input[1] in shapes:
                found.append(shapes[node.input[1]][0])
            place = _LENGTHS.get(node.op_type)
            counts = place is not None and value in node.input[place:]
            if counts and node.input[1] in shapes:
                found.append(shapes[node.input[1]][-2] + 1)
        if not found and len(shapes.get(name, ())) == 1:
            compared = (node.op_type in _COMPARISONS for node, _ in self.reached(name, _COUNTED))
            return _KEYS if any(compared) else None
        return min(found, default=None)

    def counted_at(self, name: str) -> int:
        """Return which input of a GroupQueryAttention it makes, 5 or 6; 0 if none of these.

        They say which key is the last of each batch, and how many there are at most.
        """
        if place := self._counted_by(name, _PASS):
            return place
        return ALL_KEYS if self._counted_by(name, _SUMMED) else 0

    def _counted_by(self, name: str, passed: frozenset[str]) -> int:
        places = (
            place
            for node, value in self.reached(name, passed)
            if node.op_type == _GQA
            for place in (LAST_KEY, ALL_KEYS)
            if place < len(node.input) and node.input[place] == value
        )
        return next(places, 0)


def of_subgraph(model: ModelProto, shapes: Shapes) -> Roles:
    """Roles of the inputs of a match's original; ``shapes`` as in :meth:`Flow.bound`."""
    flow = Flow(model.graph)
    operators = {node.op_type for node in model.graph.node}
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    bounds = {name: flow.bound(name, shapes) for name in types}
    return Roles(
        frozenset(name for name, kind in types.items() if _is_mask(flow, name, kind)),
        {name: bound for name, bound in bounds.items() if bound is not None},
        not operators.isdisjoint(_SOFTMAX),
        not operators.isdisjoint(_NORMS) and operators.isdisjoint(_SCALED),
    )


def _axis(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def _is_mask(flow: Flow, name: str, element: int) -> bool:
    if element == TensorProto.BOOL:
        return True
    for node, value in flow.reached(name, _PASS):
        if node.op_type in _MASKED and value in node.input[_MASKED[node.op_type] :]:
            return True
        if node.op_type in ("Add", "Sub") and _meets_softmax(flow, node):
            return True
    return False


def _meets_softmax(flow: Flow, node: NodeProto) -> bool:
    reached = flow.reached(node.output[0], _ELEMENTWISE)
    return any(reader.op_type == "Softmax" for reader, _ in reached)
