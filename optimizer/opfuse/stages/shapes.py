"""Checks the shapes that the user gives against the model, before any work is done with them."""

from __future__ import annotations

from opfuse.config import Config, Shape
from opfuse.engine.profile import resolve
from opfuse.errors import InputError
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


def chosen_shapes(source: Source, config: Config) -> tuple[dict[str, Shape], tuple[str, ...]]:
    """The shape of every input that savings are told at, and what of them was assumed.

    Those of ``config.opt_shapes``, or the usual ones; an input without a rank has none.
    """
    shapes = {
        item.name: tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
        for item in source.proto.graph.input
    }
    try:
        profile = resolve(
            source.proto.graph, (config.min_shapes, config.opt_shapes, config.max_shapes)
        )
    except InputError as error:
        return {}, (str(error),)
    weights = {item.name for item in source.proto.graph.initializer}
    shapes |= {name: levels.opt for name, levels in profile.ranges.items()}
    return {name: s for name, s in shapes.items() if name not in weights}, profile.assumed
