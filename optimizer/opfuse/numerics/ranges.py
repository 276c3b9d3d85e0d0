"""Runs a model and tells how large its values get; lives in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opfuse import child
from opfuse.numerics.chunks import LIMIT
from opfuse.numerics.compare import Array
from opfuse.numerics.session import CannotRun
from opfuse.numerics.whole import Loaded, Subject


def measure(
    probe: Subject,
    samples: Sequence[Mapping[str, Array]],
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[float] | str:
    """Return the largest value of each output over the samples, or why there is none.

    Args:
        probe: A model whose outputs are magnitudes, each a scalar.
        samples: Inputs by name; without any, inputs are drawn from ``seed`` in ``shapes``.
        seed: Of the inputs that are drawn.
        shapes: Of some or all inputs.
    """
    child.emit({"text": "the model in fp32"})
    try:
        loaded = Loaded(probe, LIMIT)
        runs = loaded.run_on(samples) if samples else loaded.run_somehow(seed, shapes)
    except (CannotRun, ValueError) as reason:
        return str(reason)
    found = [[float(result[name]) for name in loaded.outputs] for _, result in runs]
    return np.max(found, axis=0).tolist() if loaded.outputs else []
