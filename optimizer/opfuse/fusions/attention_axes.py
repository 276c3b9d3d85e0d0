"""Attention over more or fewer axes than [batch, heads, positions, size], brought to these four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import static, text
from opfuse.graph.dims import Dim, product
from opfuse.graph.facts import Shape, broadcast_shapes
from opfuse.graph.fusion import Found, Miss, NewNode
from opfuse.graph.simplify import reshape_target

_MASKS = ("mask", "bias", "keep", "drop")
_QUERY, _KEY, _VALUE = range(3)


@dataclass(frozen=True)
class Folded:
    """What the axes before [positions, size] become.

    ``front`` are those of q and ``kv_front`` those of k and v. All are a batch of single heads,
    windows as Hiera has them say, unless each of [batch, kv_heads, group] serves a group.
    """

    front: Shape
    kv_front: Shape
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, found: Found, front: Shape, kv_front: Shape) -> Folded:
        """Return the axes of a match; a group and its heads must be numbers."""
        if front == kv_front or len(front) != 3:
            return cls(front, kv_front, 1, 1)
        kv_heads, group = (static(dim, "the number of heads", found.anchor) for dim in front[1:])
        return cls(front, kv_front, kv_heads * group, kv_heads)

    def operand(
        self, found: Found, index: int, tensor: gs.Tensor, made: list[NewNode]
    ) -> gs.Tensor:
        """Return q, k, v, or the mask (``index`` 0 to 3) over four axes.

        Raises:
            Miss: The sizes of more than one axis are no numbers, or the mask has axes that fold.
        """
        if index > _VALUE:
            return self._mask(found, tensor, made)
        if len(self.front) == 1:
            return _with_head(found, tensor, made)
        front = self.front if index == _QUERY else self.kv_front
        kt = found.shape("kt")
        back = (kt[-1], kt[-2]) if index == _KEY else found.shape("q" if index == 0 else "v")[-2:]
        want = (*self._four(index), *back)
        return _reshaped(found, tensor, (*front, *back), want, made)

    def _four(self, index: int) -> tuple[Dim, int]:
        if self.heads == 1:
            return product(self.front), 1
        return self.front[0], self.heads if index == _QUERY else self.kv_heads

    def _mask(self, found: Found, tensor: gs.Tensor, made: list[NewNode]) -> gs.Tensor:
        """Return a mask that differs along no axis that folds, or has all of them in full."""
        shapes = [found.shape(name) for name in _MASKS if found.has(name)]
        rank = max(map(len, shapes))
        if len(self.front) == 1:
            return tensor if rank < 3 else _with_head(found, tensor, made)
        whole = broadcast_shapes(shapes)
        if whole is not None and self.heads == 1 and whole[:-2] == self.front:
            want = (*self._four(_QUERY), *whole[-2:])
            return _reshaped(found, tensor, whole, want, made)
        first = int(self.heads > 1 and rank == len(self.front) + 2)  # the batch stays
        for shape in shapes:
            folded = ((1,) * (rank - len(shape)) + shape)[first:-2]
            if any(dim != 1 for dim in folded):
                raise Miss(f"mask {text(shape)} differs along axes of windows", found.anchor)
        if rank <= 4:
            return tensor
        axes = found.work.constant(tensor, "axes", np.arange(first, first + rank - 4))
        out = found.work.fresh(tensor, "four_axes")
        made.append(NewNode("Squeeze", (tensor, axes), (out,), {}, ""))
        return out

    def restored(self, found: Found, whole: gs.Tensor, result: gs.Tensor) -> NewNode:
        """Return the node that gives ``result`` its axes back."""
        if len(self.front) == 1:
            axis = found.work.constant(result, "axis", np.array([1], np.int64))
            return NewNode("Squeeze", (whole, axis), (result,), {}, "")
        back = (found.shape("q")[-2], found.shape("v")[-1])
        target = _target(found, (*self._four(_QUERY), *back), (*self.front, *back))
        shape = found.work.constant(result, "shape", target)
        return NewNode("Reshape", (whole, shape), (result,), {}, "")


def _with_head(found: Found, tensor: gs.Tensor, made: list[NewNode]) -> gs.Tensor:
    """Return [batch * heads, m, n] as [batch * heads, 1, m, n], one head each."""
    axis = found.work.constant(tensor, "axis", np.array([1], np.int64))
    out = found.work.fresh(tensor, "one_head")
    made.append(NewNode("Unsqueeze", (tensor, axis), (out,), {}, ""))
    return out


def _reshaped(
    found: Found, tensor: gs.Tensor, have: Shape, want: Shape, made: list[NewNode]
) -> gs.Tensor:
    shape = found.work.constant(tensor, "shape", _target(found, have, want))
    out = found.work.fresh(tensor, "four_axes")
    made.append(NewNode("Reshape", (tensor, shape), (out,), {}, ""))
    return out


def _target(found: Found, have: Shape, want: Shape) -> np.ndarray:
    target = reshape_target(have, want)
    if target is None:
        raise Miss(f"{text(have)} has more than one size that is no number", found.anchor)
    return np.array(target, np.int64)
