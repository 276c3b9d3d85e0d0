"""What of a weight the low type can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph.weights import pieces


@dataclass(frozen=True)
class Limits:
    """A low type's numbers.

    Attributes:
        largest: Its largest finite number.
        margin: The largest activation that is computed in it: inputs that nobody has tried may
            give more than those that were.
        smallest: Its smallest normal number.
        count: Up to here it holds every integer.
    """

    largest: float
    margin: float
    smallest: float
    count: int


LIMITS: Mapping[int, Limits] = {
    TensorProto.FLOAT16: Limits(65504.0, 8192.0, 2.0**-14, 2048),
    TensorProto.BFLOAT16: Limits(3.3895313892515355e38, 1e37, 2.0**-126, 256),
}
_MOSTLY = 0.5


class Weights:
    """Judges constants; each is read once, in pieces."""

    def __init__(self, low: int, name: str, base_dir: Path) -> None:
        self._limits, self._name, self._base_dir = LIMITS[low], name, base_dir
        # The constant is kept beside its verdict: a freed one's id would be given out again.
        self._known: dict[int, tuple[gs.Constant, str, bool]] = {}
        self._ranges: dict[int, tuple[gs.Constant, float, float]] = {}

    def refusal(self, constant: gs.Constant) -> str:
        """Return why ``constant``, which is fp32, cannot be cast; "" where it can."""
        return self._judged(constant)[0]

    def is_tiny(self, constant: gs.Constant) -> bool:
        """Whether it is refused because most of its values would lose their digits, or be 0."""
        return self._judged(constant)[1]

    def has_sign(self, constant: gs.Constant, sign: int) -> bool:
        """Whether none of its values has the other sign than ``sign``, 1 or -1."""
        if id(constant) not in self._ranges:
            ends = [
                (float(values.min()), float(values.max()))
                for values in pieces(constant, self._base_dir)
                if values.size
            ]
            lowest = min((low for low, _ in ends), default=0.0)
            highest = max((high for _, high in ends), default=0.0)
            self._ranges[id(constant)] = constant, lowest, highest
        _, lowest, highest = self._ranges[id(constant)]
        return lowest >= 0 if sign > 0 else highest <= 0

    def _judged(self, constant: gs.Constant) -> tuple[str, bool]:
        if id(constant) not in self._known:
            self._known[id(constant)] = constant, *self._judge(constant)
        return self._known[id(constant)][1:]

    def _judge(self, constant: gs.Constant) -> tuple[str, bool]:
        largest, tiny, some = 0.0, 0, 0
        for values in pieces(constant, self._base_dir):
            magnitude = np.abs(values[np.isfinite(values)])
            if magnitude.size:
                largest = max(largest, float(magnitude.max()))
                some += int(np.count_nonzero(magnitude))
                tiny += int(np.count_nonzero((magnitude > 0) & (magnitude < self._limits.smallest)))
        if largest > self._limits.largest:
            end = f"{self._name} ends at {self._limits.largest:.5g}"
            return f"{constant.name} holds {largest:.3g}, {end}", False
        if tiny > _MOSTLY * some:
            share = f"{tiny} of {some} values of {constant.name} are"
            share = f"{constant.name} is" if some == 1 else share
            return f"{share} below {self._name}'s smallest normal number", True
        return "", False
