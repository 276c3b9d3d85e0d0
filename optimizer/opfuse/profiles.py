"""Shapes of the dynamic inputs: how users write them, and what they must be for a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from onnx import GraphProto

from opfuse.config import Config, Shape
from opfuse.errors import InputError

_ENTRY = re.compile(
    r"""\s*(?:(?P<quote>['"])(?P<quoted>.+?)(?P=quote)|(?P<plain>[^\s'",]+?))
        :(?:\[(?P<list>[\d\s,]*)\]|(?P<times>\d+(?:x\d+)*)|(?P<scalar>scalar))\s*(?:,|\s|$)""",
    re.VERBOSE,
)
SYNTAX = "write name:1x3x224x224,other:8x128 or name:[1,3,224,224]; quote a name with a colon: 'a:0':1x2"


def parse_shapes(text: str) -> dict[str, Shape]:
    """Reads ``name:1x3x224x224,other:..`` or ``name:[1,3,224,224]``, as trtexec and polygraphy do.

    Names may be quoted. ``scalar`` and ``[]`` are the shape of rank 0.

    Raises:
        InputError: The text is neither form, a dimension is 0, or a name comes twice.
    """
    shapes: dict[str, Shape] = {}
    position = 0
    while position < len(text):
        entry = _ENTRY.match(text, position)
        if entry is None:
            raise InputError(f"cannot read shapes {text!r} at {text[position:]!r}", SYNTAX)
        name = entry["quoted"] or entry["plain"]
        if name in shapes:
            raise InputError(f"shapes {text!r} give input {name!r} twice", "give it once")
        shapes[name] = _dims(entry, text)
        position = entry.end()
    if not shapes:
        raise InputError("the list of shapes is empty", SYNTAX)
    return shapes


def check_shapes(config: Config, graph: GraphProto) -> None:
    """Checks the shapes of a configuration against the inputs of a model.

    Raises:
        InputError: An input that is not there, another rank, a fixed dimension changed, or a
            minimum above an optimum or maximum.
    """
    weights = {item.name for item in graph.initializer}
    inputs = {item.name: item for item in graph.input if item.name not in weights}
    levels = {
        "min": config.min_shapes,
        "opt": config.opt_shapes,
        "max": config.max_shapes,
    }
    listing = "inputs: " + ", ".join(f"{name} {_written(inputs[name])}" for name in inputs)
    for level, shapes in levels.items():
        for name, shape in shapes.items():
            if name not in inputs:
                raise InputError(f"{level} shape for {name!r}, which is no input", listing)
            _check_shape(f"{level} shape of {name!r}", shape, inputs[name], listing)
    _check_order(levels)


def _dims(entry: re.Match[str], text: str) -> Shape:
    if entry["scalar"]:
        return ()
    if entry["times"]:
        parts = entry["times"].split("x")
    else:
        parts = [part for part in re.split(r"[\s,]+", entry["list"].strip()) if part]
    dims = tuple(int(part) for part in parts)
    if 0 in dims:
        raise InputError(f"shapes {text!r} have a dimension of 0", "dimensions are 1 or more")
    return dims


def _written(item: object) -> str:
    dims = item.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return "[" + ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims) + "]"


def _check_shape(what: str, shape: Shape, item: object, listing: str) -> None:
    tensor = item.type.tensor_type  # type: ignore[attr-defined]
    if not tensor.HasField("shape"):
        return
    dims = tensor.shape.dim
    if len(shape) != len(dims):
        raise InputError(f"{what} has {len(shape)} dimensions, the model has {len(dims)}", listing)
    for axis, (given, dim) in enumerate(zip(shape, dims, strict=True)):
        if dim.HasField("dim_value") and dim.dim_value > 0 and dim.dim_value != given:
            raise InputError(
                f"{what} has {given} at axis {axis}, where the model is fixed to {dim.dim_value}",
                listing,
            )


def _check_order(levels: Mapping[str, Mapping[str, Shape]]) -> None:
    for low, high in (("min", "opt"), ("opt", "max"), ("min", "max")):
        for name in levels[low].keys() & levels[high].keys():
            small, large = levels[low][name], levels[high][name]
            if len(small) == len(large) and any(a > b for a, b in zip(small, large, strict=True)):
                raise InputError(
                    f"{low} shape of {name!r} {list(small)} is above its {high} shape {list(large)}",
                    "give min <= opt <= max in every dimension",
                )
