"""Axes that exporters flatten and split again are kept apart from the start.

BLOOM and torch's ``bmm`` flatten batch and heads around each product, [batch * heads, m, n]; OPT
flattens batch and positions around its feed-forward, [batch * positions, features]. Where a
Reshape splits such an axis, what led to it is computed with the two apart.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.facts import Shape
from opfuse.graph.rewriter import Rewriter

_ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Where", "Cast", "Tanh", "Exp", "Neg", "IsNaN", "Erf")
) | frozenset(("Relu", "Sigmoid", "Sqrt", "Gelu", "Identity", "Clip", "Min", "Max"))
_COSTLY = frozenset(("MatMul", "Softmax", "LayerNormalization"))


def unbatch(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Return what a Reshape splits, computed with the axis split from the start; None if not."""
    have, want = rewriter.shape(node.inputs[0]), rewriter.out_shape(node)
    if have is None or want is None or len(have) not in (2, 3) or len(want) != len(have) + 1:
        return None
    first, second = want[:2]
    if have[0] != first * second or want[2:] != have[1:] or second == 1:
        return None
    if len(have) == 3 and not isinstance(second, int):
        return None
    lift = _Lift(rewriter, (first, second), len(have), node.outputs[0])
    if not lift.all_of(node.inputs[0]) or not lift.worthwhile:
        return None
    return lift.make(node.inputs[0])


class _Lift:
    """Rewrites what leads to one flattened tensor; first asks whether all of it can be."""

    def __init__(
        self, rewriter: Rewriter, front: tuple[Dim, Dim], rank: int, like: gs.Tensor
    ) -> None:
        self.worthwhile = False
        self._rewriter, self._like = rewriter, like
        self._front, self._rank = front, rank
        self._possible: dict[int, bool] = {}
        self._moved: dict[int, gs.Node] = {}
        self._kept: set[int] = set()  # nodes that others read too: moved, they would be there twice
        self._made: dict[int, gs.Tensor] = {}

    def all_of(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` can be computed so, and nothing costly on its way done twice."""
        while self.possible(tensor):
            kept = {key for key, node in self._moved.items() if self._is_read_beside(node)}
            if not kept:
                return True
            self._kept |= kept
            self._possible, self._moved, self.worthwhile = {}, {}, False
        return False

    def _is_read_beside(self, node: gs.Node) -> bool:
        """Tell whether what ``node`` computes is needed with the axes in one as well."""
        rewriter, (result,) = self._rewriter, node.outputs
        if not self._is_costly(node):
            return False
        whole = (*self._front, *(rewriter.shape(result) or ())[1:])
        others = (user for user in result.outputs if id(user) not in self._moved)
        free = (
            user.op == "Shape"
            or (user.op == "Reshape" and rewriter.out_shape(user) == whole)
            or not any(t.outputs or rewriter.is_needed(t) for t in user.outputs)
            for user in others
        )
        return rewriter.is_needed(result) or not all(free)

    def _is_costly(self, node: gs.Node) -> bool:
        sources = (producer(tensor) for tensor in node.inputs)
        moved = (source for source in sources if source is not None and id(source) in self._moved)
        return node.op in _COSTLY or any(map(self._is_costly, moved))

    def possible(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` can be computed with one axis more."""
        known = self._possible.get(id(tensor))
        if known is None:
            self._possible[id(tensor)] = known = self._can(tensor)
        return known

    def _can(self, tensor: gs.Tensor) -> bool:
        if self._as_it_is(tensor) or self._source(tensor) is not None:
            return True
        shape, node = self._rewriter.shape(tensor), producer(tensor)
        if not self._is_flat(shape):
            return False
        if node is None or not self._liftable(node):
            return self._rank == 3  # it is split as it is
        self._moved[id(node)] = node
        self.worthwhile |= node.op == "MatMul"
        return all(self.possible(node.inputs[index]) for index in self._lifted(node))

    def _is_flat(self, shape: Shape | None) -> bool:
        first, second = self._front
        return shape is not None and len(shape) == self._rank and shape[0] == first * second

    def _as_it_is(self, tensor: gs.Tensor) -> bool:
        """Tell whether ``tensor`` broadcasts over both axes alike."""
        shape = self._rewriter.shape(tensor)
        return shape is not None and (
            len(shape) < self._rank or (len(shape) == self._rank and shape[0] == 1)
        )

    def _source(self, tensor: gs.Tensor) -> gs.Tensor | None:
        """Return the tensor that a Reshape flattened into ``tensor``."""
        node, shape = producer(tensor), self._rewriter.shape(tensor)
        if node is None or node.op != "Reshape" or shape is None or len(shape) != self._rank:
            return None
        whole = (*self._front, *shape[1:])
        return node.inputs[0] if self._rewriter.shape(node.inputs[0]) == whole else None

    def _liftable(self, node: gs.Node) -> bool:
        rank = self._rank
        if id(node) in self._kept:
            return False
        if node.op == "Transpose":
            return rank == 3 and list(node.attrs.get("perm", ())) == [0, 2, 1]
        if node.op in ("Softmax", "LayerNormalization"):
            last = int(node.attrs.get("axis", -1)) in (-1, rank - 1)
            return last and len(node.outputs) == 1
        if node.op == "MatMul" and rank == 2:
            return isinstance(node.inputs[1], gs.Constant)
        return node.op == "MatMul" or node.op in _ELEMENTWISE

    def _lifted(self, node: gs.Node) -> range:
        """Return the inputs that have the axis; weights have not."""
        weighted = node.op == "LayerNormalization" or (node.op == "MatMul" and self._rank == 2)
        return range(1 if weighted else len(node.inputs))

    def make(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return ``tensor`` with the axis split."""
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
        if node is None or not self._liftable(node):
            return self._split(tensor)
        attrs = dict(node.attrs)
        if node.op == "Transpose":
            attrs["perm"] = [0, 1, 3, 2]
        elif node.op in ("Softmax", "LayerNormalization"):
            attrs["axis"] = -1
        lifted = self._lifted(node)
        inputs = [self.make(t) if i in lifted else t for i, t in enumerate(node.inputs)]
        return self._rewriter.emit(node.op, inputs, attrs, self._like)

    def _split(self, tensor: gs.Tensor) -> gs.Tensor:
        emit, second = self._rewriter.emit, self._front[1]
        front = self._rewriter.constant(tensor, np.array([-1, second], np.int64))
        back = emit("Shape", [tensor], {"start": 1, "end": 3}, tensor)
        target = emit("Concat", [front, back], {"axis": 0}, tensor)
        return emit("Reshape", [tensor, target], {}, tensor)
