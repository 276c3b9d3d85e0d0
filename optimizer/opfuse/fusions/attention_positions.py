"""A mask that hides keys by their distance alone becomes FlashAttention's causal and window.

The kernel then neither reads the mask nor visits the keys that no query of a tile sees. It takes
fused nodes, where the plugin library has the op: in a body a mask costs no more than these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.attention_operands import REACHABLE
from opfuse.fusions.guards import may_equal
from opfuse.fusions.position_masks import Mask, Reader, nodes_behind
from opfuse.fusions.positions import Line
from opfuse.graph.dims import Dim, at_least
from opfuse.graph.fusion import Miss, NewNode, Work

_MASK = 3  # the input's index
# What may stand between a mask and the shapes that it comes from.
OPS = frozenset(
    (
        *("Add", "And", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Equal", "Expand"),
        *("Gather", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual"),
        *("Max", "Min", "Mul", "Neg", "Not", "Or", "Range", "Reshape", "Shape", "Slice"),
        *("Squeeze", "Sub", "Trilu", "Unsqueeze", "Where"),
    )
)


class _Positions:
    """Finds the masks of fused attentions."""

    kind = "FlashAttention"

    def run(self, work: Work) -> None:
        """Take out of each mask what causal and window say."""
        reader = Reader(work, REACHABLE)
        for node in work.nodes((self.kind,), "opfuse"):
            free = not int(node.attrs["causal"]) and not int(node.attrs["window"])
            if len(node.inputs) <= _MASK or not free or node.attrs.get("lengths"):
                continue
            mask = reader.mask(node.inputs[_MASK])
            if not mask.understood:
                continue
            try:
                self._apply(work, node, mask)
            except Miss as miss:
                work.miss(self.kind, node, miss)

    def _apply(self, work: Work, node: gs.Node, mask: Mask) -> None:
        q, k = (work.shape(tensor) for tensor in node.inputs[:2])
        if q is None or k is None or len(q) != 4 or len(k) != 4:
            raise Miss("q or k has not four axes", node)
        causal, window = _limits(mask.keep.lines, q[2], k[2], node)
        alone = not mask.keep.rest and not mask.beside
        hides = (causal, window) != (0, 0) and math.isfinite(mask.fill)
        # Of a row that finite numbers mask as a whole, all keys weigh alike: hidden ones do not.
        if hides and not alone:
            raise Miss(f"masks with {mask.fill:g} beside another mask, which may be lower", node)
        if hides and not at_least(k[2] - q[2], 0):
            raise Miss(f"may have more than {k[2]} queries", node)
        made: list[NewNode] = []
        left = _rest(work, node, mask, made)
        before = nodes_behind(node.inputs[_MASK:], [*mask.keep.rest, *mask.beside])
        strange = next((other for other in before if other.op not in OPS), None)
        if strange is not None:
            raise Miss(f"computes its mask with {strange.op}", strange)
        attrs = {**node.attrs, "causal": causal, "window": window}
        attrs.pop("plugin_namespace", None)
        inputs = (*node.inputs[:_MASK], *left)
        made.append(NewNode(self.kind, inputs, (node.outputs[0],), attrs))
        work.replace(self.kind, node, [node, *before], made, before)


def _limits(lines: tuple[Line, ...], queries: Dim, keys: Dim, node: gs.Node) -> tuple[int, int]:
    """Return causal and window.

    Raises:
        Miss: They do not say what the lines say.
    """
    offset = keys - queries
    ahead: list[int] = []  # by how much a key may lie after its query, at most
    behind: list[int] = []
    for line in lines:
        if min(line.steps, default=0) >= 0 and at_least(line.offset, 0):
            continue  # hides nothing
        steps, sizes = (0, 0, *line.steps)[-2:], (1, 1, *line.sizes)[-2:]
        if queries == 1:  # its index is 0
            steps, sizes = (-steps[1], steps[1]), (1, sizes[1])
        flat = not any(line.steps[:-2])
        fit = all(fits(*pair) for pair in zip(steps, sizes, (queries, keys), strict=True))
        known = line.offset - offset if steps == (1, -1) else line.offset + offset
        if not flat or not fit or steps not in ((1, -1), (-1, 1)) or not isinstance(known, int):
            raise Miss("its mask depends on more than the distance of a key", node)
        (ahead if steps == (1, -1) else behind).append(known)
    right, left = min(ahead, default=None), min(behind, default=None)
    if right is None and left is None:
        return 0, 0
    if right == 0 and (left is None or left >= 0):
        return 1, 0 if left is None else left + 1
    if right is not None and right == left and right >= 0:
        return 0, right + 1
    raise Miss(f"sees keys from {left} behind to {right} ahead of a query", node)


def fits(step: int, size: Dim, want: Dim) -> bool:
    """Tell whether the axis along which a line grows is that of the scores."""
    return size == want or (step == 0 and want == 1) or (step == 0 and may_equal(size, want))


def _rest(work: Work, node: gs.Node, mask: Mask, made: list[NewNode]) -> tuple[gs.Tensor, ...]:
    """Return the mask without what positions say, or nothing; adds the nodes that make it."""
    old = node.inputs[_MASK]
    parts = list(mask.beside)
    if mask.keep.rest:
        keep = mask.keep.rest[0]
        for other in mask.keep.rest[1:]:
            both = work.fresh(keep, "and", onnx.TensorProto.BOOL)
            made.append(NewNode("And", (keep, other), (both,), {}, ""))
            keep = both
        dtype = onnx.helper.tensor_dtype_to_np_dtype(work.dtype(old) or 1)
        numbers = ("zero", 0.0), ("fill", mask.fill)
        zero, fill = (work.constant(old, name, np.array(n, dtype)) for name, n in numbers)
        chosen = work.fresh(old, "kept")
        made.append(NewNode("Where", (keep, zero, fill), (chosen,), {}, ""))
        parts.insert(0, chosen)
    return added(work, parts, made)


def added(work: Work, parts: Sequence[gs.Tensor], made: list[NewNode]) -> tuple[gs.Tensor, ...]:
    """Return the sum of ``parts``, or nothing of none; adds the nodes that make it."""
    total = tuple(parts[:1])
    for part in parts[1:]:
        out = work.fresh(part, "sum")
        made.append(NewNode("Add", (*total, part), (out,), {}, ""))
        total = (out,)
    return total


FUSION = _Positions()
