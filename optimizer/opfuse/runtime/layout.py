"""What follows from the shapes of the inputs, and is kept for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opfuse.runtime.contexts import Shapes
from opfuse.runtime.copies import Box


@dataclass(frozen=True)
class Layout:
    """Everything that follows from the shapes of the inputs.

    ``staged`` tells whether inputs and outputs have a place in the arena too. ``offsets`` has the
    places of tensors by name, and those of scratch memory by the number of the step; ``boxes`` are
    what each step copies that moves data, and whether that may begin early.
    """

    key: tuple[Any, ...]
    shapes: Shapes
    offsets: Mapping[str | int, int]
    scratch: Mapping[int, int]
    boxes: Mapping[int, tuple[tuple[Box, bool], ...]]
    bytes: int
