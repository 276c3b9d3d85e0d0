"""What was converted, what stayed in fp32 and why, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """A node that a rule keeps in fp32; ``node`` is its name in the user's model."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Precision:
    """One conversion.

    Attributes:
        precision: "fp16" or "bf16".
        io_precision: What inputs and outputs are: "keep", "fp16", or "bf16".
        ranges: Where the largest activations come from.
        nodes: How many nodes compute in each type, those that compute no floats left out.
        products: How many matrix products, convolutions, and attentions do.
        weights: Bytes of the weights in each type.
        casts: Casts between fp32 and the low type in the graph.
        casts_before: Casts between these types in the fused model.
        kept: What a rule keeps in fp32.
        comparison: The converted model against the original; None where none was asked for.
        names: Nodes of the graph that compute in fp32, by name; the engine's layers are held
            against them.
    """

    precision: str
    io_precision: str
    ranges: str
    nodes: Mapping[str, int]
    products: Mapping[str, int]
    weights: Mapping[str, int]
    casts: int
    casts_before: int
    kept: tuple[Kept, ...]
    comparison: Any = None
    names: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """The report's section."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del facts["names"]
        return facts
