"""What a mask says of positions alone, read from the nodes that compute it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import FLOATS
from opfuse.fusions.positions import LAYOUT, SMALL, Line, Lines
from opfuse.graph.dims import Dim, Sym
from opfuse.graph.edit import maker
from opfuse.graph.fusion import Work
from opfuse.graph.weights import load

_FP16_LOWEST = -65504.0
# A comparison says that a * left + b * right + c is at least 0.
COMPARISONS = {
    "LessOrEqual": (-1, 1, 0),
    "Less": (-1, 1, -1),
    "GreaterOrEqual": (1, -1, 0),
    "Greater": (1, -1, -1),
}


@dataclass(frozen=True)
class Keep:
    """A boolean tensor: it holds where all ``lines`` are at least 0 and all of ``rest`` hold."""

    lines: tuple[Line, ...] = ()
    rest: tuple[gs.Tensor, ...] = ()

    def also(self, other: Keep) -> Keep:
        """Return where both hold."""
        return Keep(self.lines + other.lines, self.rest + other.rest)


@dataclass(frozen=True)
class Mask:
    """An additive mask: ``fill`` where ``keep`` does not hold, and what else is added.

    ``fill`` is the highest of several, 0 where there is none.
    """

    keep: Keep = field(default_factory=Keep)
    fill: float = 0.0
    beside: tuple[gs.Tensor, ...] = ()

    @property
    def understood(self) -> bool:
        """Whether positions say anything of it, if only that it masks nothing."""
        return bool(self.keep.lines) or not (self.keep.rest or self.beside)

    def plus(self, other: Mask) -> Mask:
        """Return the sum of two masks."""
        fills = [mask.fill for mask in (self, other) if mask.fill]
        keep = self.keep.also(other.keep)
        return Mask(keep, max(fills, default=0.0), self.beside + other.beside)


class Reader:
    """Reads masks of one graph; ``lowest`` is the highest number that counts as a fill."""

    def __init__(self, work: Work, lowest: float) -> None:
        self._work = work
        self._lowest = lowest
        self._lines = Lines(work)

    def mask(self, tensor: gs.Tensor) -> Mask:
        """Return what an additive mask is made of; all that is not understood is ``beside``."""
        found = self._mask(tensor)
        return found if found is not None and found.understood else Mask(beside=(tensor,))

    def _mask(self, tensor: gs.Tensor) -> Mask | None:
        if isinstance(tensor, gs.Constant):
            return self._constant_mask(tensor)
        node = maker(tensor)
        if node is None:
            return None
        if node.op == "Where":
            return self._chosen(node)
        if node.op == "Add":
            first, second = (self.mask(part) for part in node.inputs)
            return first.plus(second)
        if node.op == "Mul":
            return self._multiplied(*node.inputs)
        if node.op == "Trilu":
            return self._triangle(node)
        return self._passed(node) if node.op in LAYOUT else None

    def _passed(self, node: gs.Node) -> Mask | None:
        """Return a mask behind a node that only spreads or casts it."""
        inner = self._mask(node.inputs[0])
        if inner is None or inner.beside:
            return None
        keep = self._spread(node, inner.keep)
        if keep is None or node.op != "Cast":
            return None if keep is None else Mask(keep, inner.fill)
        kind = node.attrs.get("to")
        if kind == onnx.TensorProto.FLOAT16 and inner.fill < _FP16_LOWEST:
            return Mask(keep, -math.inf)
        return Mask(keep, inner.fill) if kind in FLOATS else None

    def _chosen(self, node: gs.Node) -> Mask | None:
        """Read Where(keep, 0, fill) and Where(drop, fill, 0)."""
        choice, first, second = node.inputs
        values = [self._number(part) for part in (first, second)]
        if values[0] == 0 and self._fills(values[1]):
            return Mask(self.keep(choice), values[1] or 0.0)
        if values[1] == 0 and self._fills(values[0]):
            keep = self._absent(choice)
            return None if keep is None else Mask(keep, values[0] or 0.0)
        if values[1] != -math.inf:
            return None
        keep = self.keep(choice)  # what stands where it holds is as good as added
        return None if keep.rest else Mask(keep, -math.inf, (first,))

    def _multiplied(self, choice: gs.Tensor, number: gs.Tensor) -> Mask | None:
        """Read Cast(drop) times a finite fill."""
        fill, node = self._number(number), maker(choice)
        if node is None or node.op != "Cast" or not self._fills(fill) or fill == -math.inf:
            return None
        keep = self._absent(node.inputs[0])
        return None if keep is None else Mask(keep, fill or 0.0)

    def _fills(self, value: float | None) -> bool:
        return value is not None and value <= self._lowest

    def _number(self, tensor: gs.Tensor) -> float | None:
        """Return the one number that a tensor is full of."""
        value = self._work.facts.value(tensor)
        if value is not None and value.size == 1 and not isinstance(value.flat[0], Sym):
            return float(value.flat[0])
        node = maker(tensor)
        if node is not None and node.op == "Expand":
            return self._number(node.inputs[0])
        if node is not None and node.op == "ConstantOfShape" and "value" in node.attrs:
            return float(load(node.attrs["value"], self._work.base_dir).flat[0])
        return None

    def _triangle(self, node: gs.Node) -> Mask | None:
        """Read the upper triangle of a tensor full of the fill."""
        fill, shape = self._number(node.inputs[0]), self._work.shape(node.outputs[0])
        above: Dim | None = 0
        if len(node.inputs) > 1 and not node.inputs[1].is_empty():
            value = self._work.facts.value(node.inputs[1])
            above = None if value is None else value.flat[0]
        upper = bool(node.attrs.get("upper", 1))
        if above is None or shape is None or not self._fills(fill) or not upper:
            return None
        return Mask(Keep((Line.of((1, -1), shape[-2:], above - 1),)), fill or 0.0)

    def _constant_mask(self, tensor: gs.Constant) -> Mask | None:
        if self._number(tensor) == 0:
            return Mask()
        values = self._plane(tensor)
        if values is None or values.dtype.kind != "f":
            return None
        fill, kept = float(values.min()), values == 0
        if kept.all():
            return Mask()
        if not self._fills(fill) or not np.all(kept | (values == fill)):
            return None
        lines = _limits(kept)
        return None if lines is None else Mask(Keep(lines), fill)

    def _plane(self, tensor: gs.Constant) -> np.ndarray | None:
        """Return a constant as [queries, keys], where it is the same for all else."""
        shape = tuple(int(size) for size in tensor.shape)
        if len(shape) < 2 or math.prod(shape) > SMALL or any(size != 1 for size in shape[:-2]):
            return None
        return load(tensor, self._work.base_dir).reshape(shape[-2:])

    # ---- booleans

    def keep(self, tensor: gs.Tensor) -> Keep:
        """Return what a boolean tensor is made of."""
        found = self._keep(tensor)
        return Keep(rest=(tensor,)) if found is None else found

    def _keep(self, tensor: gs.Tensor) -> Keep | None:
        if self._lines.truth(tensor):
            return Keep()
        if isinstance(tensor, gs.Constant):
            plane = self._plane(tensor)
            lines = None if plane is None or plane.dtype.kind != "b" else _limits(plane)
            return None if lines is None else Keep(lines)
        node = maker(tensor)
        if node is None:
            return None
        if node.op == "And":
            both = self.keep(node.inputs[0]).also(self.keep(node.inputs[1]))
            return both if both.lines or len(both.rest) < 2 else None
        if node.op in COMPARISONS:
            a, b, more = COMPARISONS[node.op]
            line = self._lines.weighed(node.inputs, (a, b))
            return None if line is None else Keep((line.shifted(more),))
        if node.op == "Not":
            return self._absent(node.inputs[0])
        inner = self._keep(node.inputs[0]) if node.op in LAYOUT else None
        return None if inner is None or node.op == "Cast" else self._spread(node, inner)

    def _absent(self, tensor: gs.Tensor) -> Keep | None:
        """Return where a boolean tensor does not hold."""
        if self._lines.truth(tensor) is False:
            return Keep()
        node = maker(tensor)
        if node is not None and node.op == "Not":
            return self.keep(node.inputs[0])
        if node is not None and node.op == "Or":
            first, second = (self._absent(part) for part in node.inputs)
            return None if first is None or second is None else first.also(second)
        found = self._keep(tensor)
        if found is None or len(found.lines) != 1 or found.rest:
            return None
        return Keep((found.lines[0].scaled(-1).shifted(-1),))

    def _spread(self, node: gs.Node, keep: Keep) -> Keep | None:
        """Return ``keep`` behind a node that gives it more axes; ``rest`` only broadcasts."""
        if keep.rest and node.op in ("Unsqueeze", "Reshape"):
            return None
        lines = [self._lines.moved(node, line) for line in keep.lines]
        known = tuple(line for line in lines if line is not None)
        return Keep(known, keep.rest) if len(known) == len(lines) else None


def _limits(kept: np.ndarray) -> tuple[Line, ...] | None:
    """Return the lines within which a boolean [queries, keys] is true, if it is a band."""
    queries, keys = kept.shape
    if queries < 2 or keys < 2 or not kept.any():
        return None
    distance = np.arange(keys) - np.arange(queries)[:, None]  # of a key from a query
    low, high = int(distance[kept].min()), int(distance[kept].max())
    if not np.array_equal(kept, (distance >= low) & (distance <= high)):
        return None
    upper = [Line((1, -1), (queries, keys), high)] if high < keys - 1 else []
    lower = [Line((-1, 1), (queries, keys), -low)] if low > 1 - queries else []
    return (*upper, *lower)


def nodes_behind(tensors: Iterable[gs.Tensor], stop: Iterable[gs.Tensor]) -> list[gs.Node]:
    """Return the nodes that compute ``tensors``, up to ``stop``, inputs, and what has a Shape."""
    known = {id(tensor) for tensor in stop}
    found: dict[int, gs.Node] = {}
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        node = maker(tensor)
        if node is None or id(tensor) in known or id(node) in found:
            continue
        found[id(node)] = node
        if node.op != "Shape":
            waiting += node.inputs
    return list(found.values())
