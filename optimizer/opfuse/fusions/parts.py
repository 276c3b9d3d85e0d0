"""Guards of the rooms that take a tensor apart along its last axis and turn the parts."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.fusions.guards import broadcasts, last_axis, text
from opfuse.graph.edit import producer
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Miss
from opfuse.graph.pattern import Op


def takes_halves(found: Found, split: Op, rank: int, size: int) -> None:
    """Refuse a Split that does not give the two halves of the last axis."""
    node = found.node(split)
    last_axis(node, rank, default=0)
    lengths = [found.work.shape(tensor) for tensor in node.outputs]
    if len(lengths) != 2 or any(s is None or s[-1] * 2 != size for s in lengths):
        raise Miss("does not split into two equal halves", node)


def takes_slice(
    found: Found, pattern: Op, rank: int, want: tuple[int, int, int], size: int
) -> None:
    """Refuse a Slice that does not take start:end:step, ``want``, of the last axis."""
    node = found.node(pattern)
    known = [found.work.facts.value(tensor) for tensor in node.inputs[1:]]
    values = [v.ravel()[0] for v in known if v is not None and v.size == 1]
    if len(values) != len(known) or not all(isinstance(value, int) for value in values):
        raise Miss("its bounds are not constants", node)
    start, end, axis, *rest = values
    step = rest[0] if rest else 1
    bounds = tuple(min(size, b + size if b < 0 else b) for b in (start, end))
    if (*bounds, step) != want or axis % rank != rank - 1:
        raise Miss(
            f"takes {start}:{end}:{step} of axis {axis}, "
            f"want {':'.join(map(str, want))} of the last",
            node,
        )


def covers(found: Found, tensor: gs.Tensor, shape: Shape) -> None:
    """Refuse cosines or sines that do not broadcast to ``shape`` with their last axis whole."""
    have = found.work.shape(tensor)
    if have is None or not broadcasts(have, shape) or have[-1] != shape[-1]:
        raise Miss(
            f"{tensor.name} is {text(have)}, which does not provably broadcast to {text(shape)}",
            producer(tensor),
        )
