"""What a rule is told of a node, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim
from opfuse.graph.edit import is_standard, producer
from opfuse.graph.facts import Facts
from opfuse.sharding.layout import Shard, Stays

AS_IT_IS = ("Transpose", "Cast", "Identity")


@dataclass(frozen=True)
class Local:
    """How a node works on a rank's part.

    Attributes:
        inputs: For each input the part that it reads, or None where it reads the whole.
        attrs: Attributes with another value.
        sizes: Inputs that hold sizes: position in them to the rank's size.
        column: Whether it is a product whose weight is split by the features that it makes.
    """

    inputs: tuple[Shard | None, ...]
    attrs: Mapping[str, object] = field(default_factory=dict)
    sizes: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    column: bool = False


class View:
    """One node and what is known of it."""

    def __init__(self, node: gs.Node, facts: Facts, ranks: int, *, alone: bool = False) -> None:
        self.node = node
        self.facts = facts
        self.ranks = ranks
        self.alone = alone  # others may want the same of results that nobody wants yet

    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.node.inputs) and not self.node.inputs[index].is_empty()

    def shape(self, index: int = 0) -> tuple[Dim, ...]:
        """The dimensions of an input.

        Raises:
            Stays: They are not known.
        """
        return self._known(self.node.inputs[index])

    def result(self, index: int = 0) -> tuple[Dim, ...]:
        """The dimensions of an output."""
        return self._known(self.node.outputs[index])

    def _known(self, tensor: gs.Tensor) -> tuple[Dim, ...]:
        shape = self.facts.shape(tensor)
        if shape is None:
            raise Stays(f"the shape of {tensor.name} is not known")
        return shape

    def numbers(self, index: int) -> list[int]:
        """The values of a small input of fixed integers."""
        value = self.facts.value(self.node.inputs[index])
        if value is None or not all(isinstance(item, int) for item in value.ravel()):
            raise Stays("it computes its own sizes or axes")
        return [int(item) for item in value.ravel()]

    def axis(self, default: int, rank: int) -> int:
        """The attribute ``axis``, counted from the front."""
        axis = int(self.node.attrs.get("axis", default))
        return axis + rank if axis < 0 else axis

    def whole(self) -> list[Shard | None]:
        """As many inputs as the node has, all read whole."""
        return [None] * len(self.node.inputs)

    def aligned(self, index: int, shard: Shard, rank: int, size: Dim) -> Shard | None:
        """The part of an operand that is broadcast to a result of ``rank`` axes.

        Raises:
            Stays: What it has on that axis is neither one entry nor all.
        """
        shape = self.shape(index)
        axis = shard.axis - (rank - len(shape))
        if axis < 0 or shape[axis] == 1:
            return None
        if shape[axis] != size:
            raise Stays(f"an operand has {shape[axis]} of the {size} that are split")
        return shard.on(axis)


def is_weight(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or one that is only turned or in another type."""
    while (node := producer(tensor)) is not None and node.op in AS_IT_IS and is_standard(node):
        tensor = node.inputs[0]
    return isinstance(tensor, gs.Constant)


Rule: TypeAlias = Callable[[View, Sequence[Shard | None]], Local]


def only(wanted: Sequence[Shard | None]) -> Shard:
    """The part that is wanted of a node with one result that matters.

    Raises:
        Stays: The first is wanted whole.
    """
    first = wanted[0]
    if first is None:
        raise Stays("one of its results is needed whole")
    return first
