"""One distinct match as two small models and a description of what to feed them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from opfuse.graph.match import TensorSpec
from opfuse.graph.protos import BITS
from opfuse.numerics.stored import InMemory


@dataclass(frozen=True)
class Weight:
    """A constant that both models read as an input.

    ``values`` is None where it is too large to be read, ``free`` says that it may be replaced by
    any other, and ``joined`` names the weights that it is the concatenation of along ``axis``.
    """

    name: str
    element: int
    shape: tuple[int, ...]
    values: InMemory | None = None
    free: bool = False
    joined: tuple[str, ...] = ()
    axis: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the values."""
        return prod(self.shape) * BITS[self.element] // 8


@dataclass(frozen=True)
class Case:
    """A job of the prover; picklable.

    ``before`` and ``after`` are serialized models whose inputs are ``inputs`` and ``weights``.
    ``outputs`` are the names to compare; ``shared`` are values that ``before`` computes and
    ``after`` reads.
    """

    signature: str
    kind: str
    before: bytes
    after: bytes
    inputs: tuple[TensorSpec, ...]
    weights: tuple[Weight, ...]
    outputs: tuple[str, ...]
    shared: tuple[str, ...]
