"""A mask that hides keys beyond each batch's own number of them becomes FlashAttention's lengths.

The kernel then neither reads the mask nor visits these keys. Where queries stand behind what a
cache holds, as GroupQueryAttention has them, causal and window count from there. It takes fused
nodes, where the plugin library has the op, behind what positions alone say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_body import COUNTED, MASK
from opfuse.fusions.attention_positions import OPS, added, fits
from opfuse.fusions.attention_slopes import only_known
from opfuse.fusions.guards import may_equal
from opfuse.fusions.key_lengths import Count, CountReader
from opfuse.fusions.position_masks import nodes_behind
from opfuse.graph.dims import Dim
from opfuse.graph.fusion import Miss, NewNode, Work

_INT64 = onnx.TensorProto.INT64
_BATCH = -4  # the axis of [batch, heads, queries, keys]
_MOST = 1 << 31  # more than any size and any number that is added here
_CEILING = 1 << 40  # where a number of keys ends: with it a few of _MOST do not leave int64


@dataclass(frozen=True)
class _Seen:
    """Keys below ``base`` + ``more``, and ``queries`` where it counts those too."""

    base: gs.Tensor
    more: int
    behind: bool
    window: int = 0


class _Lengths:
    """Finds the masks of fused attentions."""

    kind = "FlashAttention"

    def run(self, work: Work) -> None:
        """Take out of each mask what numbers of keys say."""
        reader = CountReader(work)
        for node in work.nodes((self.kind,), "opfuse"):
            placed = any(node.attrs.get(name) for name in ("causal", "window", "slopes", "lengths"))
            if len(node.inputs) <= MASK or placed:
                continue
            known = only_known(node.inputs[MASK], partial(_read, work, node, reader))
            if known is None:
                continue
            rest, _, seen = known
            try:
                self._apply(work, node, rest, seen)
            except Miss as miss:
                work.miss(self.kind, node, miss)

    def _apply(self, work: Work, node: gs.Node, rest: list[gs.Tensor], seen: _Seen) -> None:
        stop = [seen.base, *rest]
        queries = _queries(work, node, nodes_behind(node.inputs[MASK:], stop))
        before = nodes_behind(node.inputs[MASK:], [*stop, *queries])
        strange = next((other for other in before if other.op not in OPS), None)
        if strange is not None:
            raise Miss(f"computes its mask with {strange.op}", strange)
        made: list[NewNode] = []
        left = added(work, rest, made)
        attrs = {**node.attrs, "causal": int(seen.behind), "window": seen.window}
        attrs["lengths"] = COUNTED
        attrs.pop("plugin_namespace", None)
        inputs = (*node.inputs[:MASK], *left, _lengths(work, node, seen, queries, made))
        made.append(NewNode(self.kind, inputs, (node.outputs[0],), attrs))
        work.replace(self.kind, node, [node, *before], made, before)


def _read(work: Work, node: gs.Node, reader: CountReader, mask: gs.Tensor) -> _Seen | None:
    """Return what all of a mask's limits say together, if attributes can."""
    limits = reader.limits(mask)
    q, k = (work.shape(tensor) for tensor in node.inputs[:2])
    if not limits or q is None or k is None or len(q) != 4 or len(k) != 4:
        return None
    upper = [limit for limit in limits if limit.sign > 0]
    lower = [limit for limit in limits if limit.sign < 0]
    if len(upper) != 1 or len(lower) > 1:
        return None
    base = upper[0].base
    steps = [_steps(work, limit, q, k[2]) for limit in limits]
    if base is None or any(limit.base is not base for limit in limits) or None in steps:
        return None
    end, begin = upper[0].line.offset, lower[0].line.offset if lower else 0
    by_query = bool(steps[limits.index(upper[0])])
    if not isinstance(end, int) or not isinstance(begin, int) or max(abs(end), abs(begin)) > _MOST:
        return None
    if not lower:
        return _Seen(base, end + (not by_query), by_query)
    same = steps[0] == steps[1]
    window = end + begin + 1
    if not same or window < 1 or not (by_query or q[2] == 1):
        return None
    return _Seen(base, end, True, window)


def _steps(work: Work, limit: Count, q: tuple[Dim, ...], keys: Dim) -> int | None:
    """Return whether a limit goes with the queries, 1 or 0; None where it is no limit of keys."""
    sizes = (1,) * 4 + limit.line.sizes
    *front, by_query, by_key = ((0,) * 4 + limit.line.steps)[-4:]
    shape = None if limit.base is None else work.shape(limit.base)
    batch = [] if shape is None else [size for size in shape if size != 1]
    fit = limit.axis is None or (limit.axis == _BATCH and may_equal(batch[0], q[0]))
    key_fits = fits(by_key, sizes[-1], keys) and by_key == -limit.sign
    if any(front) or shape is None or not fit or not key_fits:
        return None
    own = by_query * limit.sign
    return own if own == 0 or (own == 1 and fits(own, sizes[-2], q[2])) else None


def _lengths(
    work: Work, node: gs.Node, seen: _Seen, queries: list[gs.Tensor], made: list[NewNode]
) -> gs.Tensor:
    """Return the lengths, [batch] or [1]; adds the nodes that make them."""
    total = seen.base
    if seen.more or seen.behind:
        total = _bounded(work, seen, made)
    shape = work.shape(total)
    if shape is None or len(shape) != 1:
        flat = work.constant(total, "flat", np.array([-1], np.int64))
        total = _emit(work, made, "Reshape", (total, flat))
    if seen.more:
        more = work.constant(total, "more", np.array([seen.more], np.int64))
        total = _emit(work, made, "Add", (total, more))
    if seen.behind:
        size = {"start": 2, "end": 3}
        count = queries or [_emit(work, made, "Shape", node.inputs[:1], size, node.inputs[0])]
        total = _emit(work, made, "Add", (total, count[0]))
    return total


def _bounded(work: Work, seen: _Seen, made: list[NewNode]) -> gs.Tensor:
    """Return a number of keys as int64 that no sum wraps: some say "all" with the highest number.

    Beyond the bounds all keys are seen or none, whatever is added.
    """
    base = seen.base
    if work.dtype(base) != _INT64:
        return _emit(work, made, "Cast", (base,), {"to": _INT64})
    if seen.more > 0 or seen.behind:
        most = work.constant(base, "most", np.array(_CEILING))
        base = _emit(work, made, "Min", (base, most))
    if seen.more < 0:
        least = work.constant(base, "least", np.array(-_CEILING))
        base = _emit(work, made, "Max", (base, least))
    return base


def _queries(work: Work, node: gs.Node, before: list[gs.Node]) -> list[gs.Tensor]:
    """Return how many queries there are, where the mask was made from that, which layers share."""
    shape, found = work.shape(node.inputs[0]), []
    for tensor in (tensor for maker in before for tensor in maker.inputs):
        value = work.facts.value(tensor)
        if shape is None or value is None or value.size != 1 or value.ndim > 1:
            continue
        if work.dtype(tensor) == _INT64 and value.flat[0] == shape[2]:
            found.append(tensor)
    return found[:1]


def _emit(
    work: Work,
    made: list[NewNode],
    op: str,
    inputs: Sequence[gs.Tensor],
    attrs: Mapping[str, object] | None = None,
    like: gs.Tensor | None = None,
) -> gs.Tensor:
    kept = work.dtype(inputs[0]) if op == "Reshape" else _INT64
    out = work.fresh(like or inputs[0], op.lower(), kept)
    made.append(NewNode(op, tuple(inputs), (out,), attrs or {}, ""))
    return out


FUSION = _Lengths()
