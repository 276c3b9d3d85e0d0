"""[batch * heads, m, n] written as [batch, heads, m, n]: one spelling for batched products.

BLOOM and torch's ``bmm`` flatten batch and heads before each product and split them behind it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.rewriter import Rewriter

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Tanh", "Exp", "Neg", "IsNaN")


def unbatch(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Compute what a Reshape splits into batch and heads with the two apart from the start."""
    have, want = rewriter.shape(node.inputs[0]), rewriter.out_shape(node)
    if have is None or want is None or len(have) != 3 or len(want) != 4:
        return None
    batch, heads = want[:2]
    if have[0] != batch * heads or want[2:] != have[1:]:
        return None
    if not isinstance(heads, int) or heads == 1:
        return None
    lift = _Lift(rewriter, batch, heads, node.outputs[0])
    if not lift.possible(node.inputs[0]) or not lift.worthwhile:
        return None
    return lift.make(node.inputs[0])


class _Lift:
    """Rewrites what leads to one flattened tensor; first asks whether all of it can be."""

    def __init__(self, rewriter: Rewriter, batch: Dim, heads: int, like: gs.Tensor) -> None:
        self.worthwhile = False
        self._rewriter, self._like = rewriter, like
        self._batch, self._heads = batch, heads
        self._possible: dict[int, bool] = {}
        self._made: dict[int, gs.Tensor] = {}

    def possible(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` can be computed in four dimensions."""
        known = self._possible.get(id(tensor))
        if known is None:
            self._possible[id(tensor)] = known = self._can(tensor)
        return known

    def _can(self, tensor: gs.Tensor) -> bool:
        if self._as_it_is(tensor) or self._source(tensor) is not None:
            return True
        shape, node = self._rewriter.shape(tensor), producer(tensor)
        if shape is None or len(shape) != 3 or shape[0] != self._batch * self._heads:
            return False
        if node is None or not _liftable(node):
            return True  # it is split as it is
        self.worthwhile |= node.op == "MatMul"
        return all(self.possible(source) for source in node.inputs)

    def _as_it_is(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` broadcasts over batch and heads alike."""
        shape = self._rewriter.shape(tensor)
        return shape is not None and (len(shape) < 3 or (len(shape) == 3 and shape[0] == 1))

    def _source(self, tensor: gs.Tensor) -> gs.Tensor | None:
        """Return the four-dimensional tensor that a Reshape flattened into ``tensor``."""
        node, shape = producer(tensor), self._rewriter.shape(tensor)
        if node is None or node.op != "Reshape" or shape is None or len(shape) != 3:
            return None
        whole = (self._batch, self._heads, *shape[1:])
        return node.inputs[0] if self._rewriter.shape(node.inputs[0]) == whole else None

    def make(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return ``tensor`` in four dimensions."""
        if id(tensor) not in self._made:
            self._made[id(tensor)] = self._new(tensor)
        return self._made[id(tensor)]

    def _new(self, tensor: gs.Tensor) -> gs.Tensor:
        source = self._source(tensor)
        if source is not None:
            return source
        if self._as_it_is(tensor):
            return tensor
        node = producer(tensor)
        if node is None or not _liftable(node):
            return self._split(tensor)
        attrs = dict(node.attrs)
        if node.op == "Transpose":
            attrs["perm"] = [0, 1, 3, 2]
        elif node.op == "Softmax":
            attrs["axis"] = -1
        inputs = [self.make(part) for part in node.inputs]
        return self._rewriter.emit(node.op, inputs, attrs, self._like)

    def _split(self, tensor: gs.Tensor) -> gs.Tensor:
        emit, heads = self._rewriter.emit, self._heads
        front = self._rewriter.constant(tensor, np.array([-1, heads], np.int64))
        back = emit("Shape", [tensor], {"start": 1, "end": 3}, tensor)
        target = emit("Concat", [front, back], {"axis": 0}, tensor)
        return emit("Reshape", [tensor, target], {}, tensor)


def _liftable(node: gs.Node) -> bool:
    if node.op == "Transpose":
        return list(node.attrs.get("perm", ())) == [0, 2, 1]
    if node.op == "Softmax":
        return int(node.attrs.get("axis", -1)) in (-1, 2)
    return node.op == "MatMul" or node.op in _ELEMENTWISE
