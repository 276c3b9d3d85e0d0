"""The type and symbolic shape of every tensor of a lowered model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from onnx import ModelProto, ValueInfoProto, helper

from opfuse.engine.profile import Profile, Range, dimensions
from opfuse.graph import surgeon
from opfuse.graph.dims import Dim, Sym, evaluate
from opfuse.graph.shapes import analyse

_BODY = re.compile(r"_body(_plain)?_*$")


@dataclass(frozen=True)
class Typed:
    """An element type of ONNX and dimensions in the symbols of the model's inputs."""

    element: int
    shape: tuple[Dim, ...]

    def info(self, name: str) -> ValueInfoProto:
        """As ONNX writes it; dimensions that are no sizes become text."""
        dims = [dim if isinstance(dim, int) else str(dim) for dim in self.shape]
        return helper.make_tensor_value_info(name, self.element, dims)


def types_of(model: ModelProto) -> dict[str, Typed]:
    """Every tensor of which type and rank are known, weights included.

    Stage lower renames the functions of fused ops that are no plugins; here they go by the op's
    name, which is the one that shape rules know.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    shapes = dimensions(copy.graph)
    for info in copy.graph.input:
        for dim, known in zip(
            info.type.tensor_type.shape.dim, shapes.get(info.name, ()), strict=False
        ):
            if not isinstance(known, int):
                dim.dim_param = str(known)
    graph = surgeon.read(copy)
    for node in graph.nodes:
        if node.domain == "opfuse":
            node.op = _BODY.sub("", node.op)
    facts = analyse(graph)
    found = {}
    for name, tensor in graph.tensors().items():
        element, shape = facts.dtype(tensor), facts.shape(tensor)
        if element and shape is not None:
            found[name] = Typed(element, shape)
    return found


def range_of(typed: Typed, profile: Profile) -> Range | None:
    """The smallest, usual, and largest shape under a profile; None where a size is not known.

    A size such as ``total - past`` is largest where a symbol is smallest: every combination of
    smallest and largest symbols is tried.
    """
    try:
        axes = [_axis(dim, profile) for dim in typed.shape]
    except (KeyError, ZeroDivisionError):
        return None
    low, usual, high = (tuple(axis[level] for axis in axes) for level in range(3))
    return Range(low, usual, high) if min(low, default=0) >= 0 else None


def _axis(dim: Dim, profile: Profile) -> tuple[int, int, int]:
    if not isinstance(dim, Sym):
        return dim, dim, dim
    smallest, usual, largest = profile.sizes
    middle = evaluate(dim, usual)
    found = [middle, *(evaluate(dim, corner) for corner in _corners(dim, smallest, largest))]
    return min(found), middle, max(found)


def _corners(
    dim: Sym, smallest: Mapping[str, int], largest: Mapping[str, int]
) -> list[Mapping[str, int]]:
    names = sorted(dim.symbols())
    choices = product(*({smallest[name], largest[name]} for name in names))
    return [dict(zip(names, sizes, strict=True)) for sizes in choices]
