"""Matrix products: split by the features that they make, by rows, or by what they batch."""

from __future__ import annotations

from collections.abc import Sequence

from opfuse.graph.edit import producer
from opfuse.sharding.layout import Shard, Stays, even, side_by_side, static
from opfuse.sharding.rules.base import Local, Rule, View, is_weight, only


def _matmul(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard = only(wanted)
    left, right, rank = view.shape(0), view.shape(1), len(view.result())
    if len(left) < 2 or len(right) < 2:
        raise Stays("it multiplies with a vector")
    if shard.axis == rank - 1:
        constant = is_weight(view.node.inputs[1])
        return Local((None, shard.on(len(right) - 1)), column=constant)
    if shard.axis == rank - 2:
        return Local((shard.on(len(left) - 2), None))
    size = view.result()[shard.axis]
    return Local((view.aligned(0, shard, rank, size), view.aligned(1, shard, rank, size)))


def _gemm(view: View, wanted: Sequence[Shard | None]) -> Local:
    """The normal form leaves the Gemms that scale or turn what they read."""
    shard = only(wanted)
    inputs = view.whole()
    if shard.axis == 1:
        inputs[1] = shard.on(0 if view.node.attrs.get("transB", 0) else 1)
    else:
        inputs[0] = shard.on(1 if view.node.attrs.get("transA", 0) else 0)
    if view.has(2):
        inputs[2] = view.aligned(2, shard, 2, view.result()[shard.axis])
    constant = shard.axis == 1 and is_weight(view.node.inputs[1])
    return Local(tuple(inputs), column=constant)


def _gemm_act(view: View, wanted: Sequence[Shard | None]) -> Local:
    shard, rank = only(wanted), len(view.result())
    inputs = view.whole()
    if shard.axis < rank - 1:
        inputs[0] = shard
        return Local(tuple(inputs))
    inputs[1] = shard.on(1)
    if view.has(2):
        inputs[2] = shard.on(0)
    return Local(tuple(inputs), column=is_weight(view.node.inputs[1]))


def row(view: View) -> Local:
    """A product split by what it sums over: every rank has a part of the sum.

    Raises:
        Stays: It is none, or the ranks do not divide what it sums over.
    """
    node = view.node
    if node.op == "GemmAct":
        raise Stays("its activation needs the whole sum")
    if node.op == "Gemm":
        raise Stays("it scales or turns what it reads")
    if node.op != "MatMul" or len(node.inputs) != 2 or not is_weight(node.inputs[1]):
        raise Stays("it is no product with a weight")
    left, right = view.shape(0), view.shape(1)
    if len(right) != 2 or len(left) < 2:
        raise Stays("its weight is no matrix")
    axis = len(left) - 1
    sizes = _joined(view, axis) or [static(right[0], "what it sums over")]
    shard = side_by_side([even(axis, size, view.ranks) for size in sizes], sizes)
    return Local((shard, shard.on(0)))


def _joined(view: View, axis: int) -> list[int]:
    """The sizes of what the left operand joins along ``axis``: each is split by itself."""
    node = producer(view.node.inputs[0])
    if node is None or node.op != "Concat" or int(node.attrs["axis"]) % (axis + 1) != axis:
        return []
    shapes = [view.facts.shape(tensor) for tensor in node.inputs]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed if len(fixed) == len(shapes) and all(s % view.ranks == 0 for s in fixed) else []


RULES: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm, "GemmAct": _gemm_act}
