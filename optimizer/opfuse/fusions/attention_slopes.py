"""A bias that grows with a key's distance (ALiBi, Press et al. 2022) becomes slopes of heads.

The kernel then computes it from one number of each head; a bias of [heads, queries, keys] is as
large as the scores. It takes fused nodes, where the plugin library has the op, behind what causal
and window say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_body import MASK
from opfuse.fusions.attention_positions import OPS, added, fits
from opfuse.fusions.guards import FLOATS
from opfuse.fusions.position_masks import nodes_behind
from opfuse.fusions.positions import LAYOUT, SMALL, Line, Lines
from opfuse.graph.dims import Dim
from opfuse.graph.edit import maker
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Miss, NewNode, Work
from opfuse.graph.weights import load

_Found = TypeVar("_Found")
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of products of a slope and a position


@dataclass(frozen=True)
class _Ramp:
    """``factor`` times a line, or times its absolute value.

    ``factor`` is [..., 1, 1], aligned at the last axes as broadcasting does.
    """

    factor: np.ndarray
    line: Line
    absolute: bool = False

    def times(self, factor: np.ndarray) -> _Ramp:
        return _Ramp(self.factor * factor, self.line, self.absolute)


class _Ramps:
    """Reads biases of one graph."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lines = Lines(work)

    def read(self, tensor: gs.Tensor) -> _Ramp | None:
        """Return a floating-point tensor as a ramp, None where it is not known to be one."""
        line = self._lines.line(tensor)
        if line is not None:
            return _Ramp(np.ones(()), line)
        if isinstance(tensor, gs.Constant):
            return self._constant(tensor)
        node = maker(tensor)
        if node is None:
            return None
        if node.op == "Mul":
            return self._product(*node.inputs) or self._product(*reversed(node.inputs))
        if node.op in ("Abs", "Neg"):
            return self._signed(node)
        if node.op in ("Add", "Sub"):
            return self._sum(node)
        return self._passed(node) if node.op in (*LAYOUT, "Slice") else None

    def _product(self, first: gs.Tensor, second: gs.Tensor) -> _Ramp | None:
        factor, ramp = self._factor(second), self.read(first)
        return None if factor is None or ramp is None else ramp.times(factor)

    def _factor(self, tensor: gs.Tensor) -> np.ndarray | None:
        """Return numbers that differ between heads alone, as float64."""
        if self._work.dtype(tensor) not in FLOATS:
            return None
        value = self._work.facts.value(tensor)
        if isinstance(tensor, gs.Constant) and np.prod(tensor.shape) <= SMALL:
            value = load(tensor, self._work.base_dir)
        if value is None or any(size != 1 for size in value.shape[-2:]):
            return None
        factor = value.astype(np.float64)
        return factor if np.isfinite(factor).all() else None

    def _signed(self, node: gs.Node) -> _Ramp | None:
        inner = self.read(node.inputs[0])
        if inner is None:
            return None
        if node.op == "Neg":
            return inner.times(np.float64(-1))
        return _Ramp(np.abs(inner.factor), inner.line, absolute=True)

    def _sum(self, node: gs.Node) -> _Ramp | None:
        """Read a difference of positions that were made floating-point before."""
        first, second = (self.read(part) for part in node.inputs)
        sign = 1 if node.op == "Add" else -1
        if first is None or second is None or first.absolute or second.absolute:
            return None
        if first.factor.shape or second.factor.shape or abs(first.factor) != abs(second.factor):
            return None
        ratio = int(np.sign(first.factor) * np.sign(second.factor)) * sign
        line = first.line.plus(second.line.scaled(ratio))
        return None if line is None else _Ramp(first.factor, line)

    def _passed(self, node: gs.Node) -> _Ramp | None:
        """Read what only has other axes, or is in another type, or is a part of a line."""
        kind = node.attrs.get("to") if node.op == "Cast" else onnx.TensorProto.FLOAT
        inner = self.read(node.inputs[0]) if kind in FLOATS else None
        if inner is None:
            return None
        have, want = (self._work.shape(t) for t in (node.inputs[0], node.outputs[0]))
        by_head = inner.factor.size > 1 and node.op in ("Unsqueeze", "Reshape", "Slice")
        stays = _same_in_front if node.op == "Slice" else _only_in_front
        if by_head and not stays(have, want):
            return None
        whole = inner.line if have is None else inner.line.aligned(len(have))
        line = (self._lines.part if node.op == "Slice" else self._lines.moved)(node, whole)
        return None if line is None else _Ramp(inner.factor, line, inner.absolute)

    def _constant(self, tensor: gs.Constant) -> _Ramp | None:
        """Read [..., heads, 1 or queries, keys]; the first row says which ramp it might be."""
        shape = tuple(int(size) for size in tensor.shape)
        if len(shape) < 2 or shape[-1] == 1 or np.prod(shape) > SMALL:
            return None
        values = np.asarray(load(tensor, self._work.base_dir))
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            return None
        values = values.astype(np.float64)
        factor = (values[..., :1, -1:] - values[..., :1, :1]) / (shape[-1] - 1)
        if not factor.any():
            return None
        column, row = np.arange(shape[-1]), np.arange(shape[-2])[:, None]
        flat = (0,) * (len(shape) - 2)
        if shape[-2] > 1:
            line = Line.of((*flat, -1, 1), shape, 0)
            return _Ramp(factor, line, True) if _same(values, factor * abs(column - row)) else None
        if not _same(values, values[..., :1] + factor * column):
            return None
        return _Ramp(factor, Line.of((*flat, 0, 1), shape, 0))


def _only_in_front(have: Shape | None, want: Shape | None) -> bool:
    """Tell whether a shape only gets axes of size 1 in front."""
    return have is not None and want is not None and want == (1,) * (len(want) - len(have)) + have


def _same_in_front(have: Shape | None, want: Shape | None) -> bool:
    """Tell whether a shape keeps all but its last two axes."""
    return have is not None and want is not None and have[:-2] == want[:-2]


def _same(values: np.ndarray, ramp: np.ndarray) -> bool:
    """Tell whether each head is its ramp but for rounding; one may be far larger than another."""
    largest = np.abs(values).max(axis=(-2, -1), keepdims=True)
    return bool((np.abs(values - ramp) <= _ROUNDING * largest).all())


class _Slopes:
    """Finds the biases of fused attentions."""

    kind = "FlashAttention"

    def run(self, work: Work) -> None:
        """Take out of each mask what grows with the distance."""
        ramps = _Ramps(work)
        for node in work.nodes((self.kind,), "opfuse"):
            if len(node.inputs) <= MASK or node.attrs.get("slopes") or node.attrs.get("lengths"):
                continue
            known = only_known(node.inputs[MASK], ramps.read)
            if known is None:
                continue
            try:
                self._apply(work, node, *known)
            except Miss as miss:
                work.miss(self.kind, node, miss)

    def _apply(
        self, work: Work, node: gs.Node, rest: list[gs.Tensor], bias: gs.Tensor, ramp: _Ramp
    ) -> None:
        q, k = (work.shape(tensor) for tensor in node.inputs[:2])
        if q is None or k is None or len(q) != 4 or len(k) != 4:
            raise Miss("q or k has not four axes", node)
        slopes = _slopes(ramp, q[2], k[2], bool(node.attrs["causal"]), node)
        heads = int(node.attrs["num_heads"])
        each = np.broadcast_to(slopes.reshape(-1), (heads,)).astype(np.float32)
        made: list[NewNode] = []
        left = added(work, rest, made)
        before = nodes_behind(node.inputs[MASK:], rest)
        strange = next((other for other in before if other.op not in _OPS), None)
        if strange is not None:
            raise Miss(f"computes its bias with {strange.op}", strange)
        attrs = {**node.attrs, "slopes": 1}
        attrs.pop("plugin_namespace", None)
        inputs = (*node.inputs[:MASK], *left, work.constant(bias, "slopes", each))
        made.append(NewNode(self.kind, inputs, (node.outputs[0],), attrs))
        work.replace(self.kind, node, [node, *before], made, before)


_OPS = OPS | {"Abs"}


def _slopes(ramp: _Ramp, queries: Dim, keys: Dim, causal: bool, node: gs.Node) -> np.ndarray:
    """Return what a score loses for each key of distance, [heads, 1, 1] or one number.

    Where no query sees a later key the distance has one sign; and what is the same for all keys of
    a query cancels in the softmax, so that only what each key adds matters.

    Raises:
        Miss: No distance of a key from its query says what is added.
    """
    line, factor = ramp.line, ramp.factor
    steps, sizes = (0, 0, *line.steps)[-2:], (1, 1, *line.sizes)[-2:]
    fit = all(
        fits(*pair) or pair[:2] == (0, 1)
        for pair in zip(steps, sizes, (queries, keys), strict=True)
    )
    by_head = factor.size == 1 or (factor.ndim >= 3 and factor.size == factor.shape[-3])
    if any(line.steps[:-2]) or not fit or not by_head:
        raise Miss("its bias depends on more than the distance of a key", node)
    if not ramp.absolute and causal and steps[1]:
        return np.asarray(factor * steps[1])
    offset = keys - queries
    known = line.offset - offset if steps == (1, -1) else line.offset + offset
    if not ramp.absolute or steps not in ((1, -1), (-1, 1)) or known != 0:
        raise Miss("its bias depends on more than the distance of a key", node)
    return -factor


def only_known(
    mask: gs.Tensor, read: Callable[[gs.Tensor], _Found | None]
) -> tuple[list[gs.Tensor], gs.Tensor, _Found] | None:
    """Return the other parts of a sum, the one that ``read`` knows, and what it is; else None."""
    parts = _summands(mask)
    known = [(part, found) for part in parts if (found := read(part)) is not None]
    if len(known) != 1:
        return None
    part, found = known[0]
    return [other for other in parts if other is not part], part, found


def _summands(tensor: gs.Tensor) -> list[gs.Tensor]:
    """Return what Adds sum up to make ``tensor``."""
    node = maker(tensor)
    if node is None or node.op != "Add":
        return [tensor]
    return [part for each in node.inputs for part in _summands(each)]


FUSION = _Slopes()
