"""Which tensors can be shown to have one sign."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from opfuse.graph import edit
from opfuse.graph.facts import Facts
from opfuse.precision.constants import Weights
from opfuse.precision.rules import MOVES
from opfuse.precision.types import FLOATS

_STEPS = 12  # back from the tensor that is asked about
_POSITIVE = frozenset(
    {"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid"}
    | {"Softmax", "Softplus", "Sqrt"}
)
# What they give has the sign that all their floating-point inputs have.
_KEEP = MOVES | frozenset(
    {"Add", "Max", "Mean", "Min", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Sum"}
    | {"Where"}
)


class Signs:
    """The signs of the tensors of one graph."""

    def __init__(self, facts: Facts, weights: Weights) -> None:
        self._facts, self._weights = facts, weights

    def never_positive(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is 0 or below wherever it is a number, whatever the inputs are."""
        return self._has(tensor, -1, _STEPS)

    def _has(self, tensor: gs.Tensor, sign: int, steps: int) -> bool:
        """Whether no value of ``tensor`` has the sign that is not ``sign``, 1 or -1."""
        if isinstance(tensor, gs.Constant):
            return self._weights.has_sign(tensor, sign)
        node = edit.producer(tensor)
        if node is None or not steps or not edit.is_standard(node):
            return False
        if node.op in _POSITIVE:
            return sign > 0
        floats = [t for t in node.inputs if self._facts.dtype(t) in FLOATS]
        if node.op in _KEEP and node.attrs.get("reduction", "none") == "none":
            return bool(floats) and all(self._has(t, sign, steps - 1) for t in floats)
        if node.op == "Neg":
            return self._has(node.inputs[0], -sign, steps - 1)
        if node.op == "Sub":
            return sign < 0 and _is_most(node.inputs[1], node.inputs[0])
        return node.op in ("Mul", "Div") and self._of_product(node.inputs, sign, steps - 1)

    def _of_product(self, factors: Sequence[gs.Tensor], sign: int, steps: int) -> bool:
        left, right = factors
        if left is right:
            return sign > 0
        return any(
            self._has(left, own, steps) and self._has(right, own * sign, steps) for own in (1, -1)
        )


def _is_most(most: gs.Tensor, of: gs.Tensor) -> bool:
    """Whether ``most`` is a maximum of ``of`` and others."""
    node = edit.producer(most)
    if node is None or node.op not in ("Max", "ReduceMax") or not node.attrs.get("keepdims", 1):
        return False
    return any(tensor is of for tensor in node.inputs)
