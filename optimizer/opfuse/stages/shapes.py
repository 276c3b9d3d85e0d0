"""Checks the shapes that the user gives against the model, before any work is done with them."""

from __future__ import annotations

from opfuse.config import Config
from opfuse.engine.profile import resolve
from opfuse.stages.load import Source


def check_shapes(source: Source, config: Config) -> None:
    """Refuses shapes that no engine of this model could have.

    Raises:
        InputError: An input that is not there, another rank, a fixed dimension changed, or
            sizes that contradict each other.
    """
    given = (config.min_shapes, config.opt_shapes, config.max_shapes)
    if any(given):
        resolve(source.proto.graph, given)
