"""One memory block for everything that lives only for a while: who lies where in it, and when.

Tensors whose lifetimes do not meet may share bytes. The largest are placed first, each at the
lowest gap that is free during its whole life (greedy by size, as Pisarchyk and Lee describe it in
"Efficient Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""What TensorRT and cudaMalloc align to; every offset is a multiple of it."""


@dataclass(frozen=True)
class Life:
    """A block of ``bytes`` that is in use from step ``first`` to step ``last``, both included.

    ``name`` is a tensor's, or the number of the step whose scratch memory it is.
    """

    name: str | int
    bytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether both are in use at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """The offset of every block, and the bytes of the whole."""

    offsets: Mapping[str | int, int]
    bytes: int


def place(lives: Iterable[Life]) -> Placement:
    """Find an offset for every block so that none meets another in time and in place."""
    placed: list[tuple[int, Life]] = []
    for life in sorted(lives, key=lambda item: (-item.bytes, item.first, str(item.name))):
        offset = _lowest_gap(life, placed)
        placed.append((offset, life))
    total = max((offset + rounded(life.bytes) for offset, life in placed), default=0)
    return Placement({life.name: offset for offset, life in placed}, total)


def rounded(size: int) -> int:
    """``size`` bytes and what is lost behind them."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def unshared(lives: Sequence[Life]) -> int:
    """The bytes that the blocks would take side by side."""
    return sum(rounded(life.bytes) for life in lives)


def busiest(lives: Sequence[Life]) -> int:
    """The most bytes in use at one step: no placement takes less."""
    steps = {life.first for life in lives}
    return max(
        (sum(rounded(a.bytes) for a in lives if a.first <= step <= a.last) for step in steps),
        default=0,
    )


def _lowest_gap(life: Life, placed: Iterable[tuple[int, Life]]) -> int:
    end = 0
    size = rounded(life.bytes)
    for offset, other in sorted(placed, key=lambda item: item[0]):
        if other.meets(life):
            if offset - end >= size:
                break
            end = max(end, offset + rounded(other.bytes))
    return end
