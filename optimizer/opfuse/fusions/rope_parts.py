"""Rope written by its parts: first = a cos - b sin and second = b cos + a sin.

a and b are the halves of x, or its even and its odd places; first and second stand one behind the
other, as halves, or beside each other, as pairs. DeepSeek takes pairs and gives halves.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import floating, last_axis, same_type, static
from opfuse.fusions.parts import covers, takes_halves, takes_slice
from opfuse.fusions.rope import turn
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, op

x, cos, sin = Var("x"), Var("cos"), Var("sin")
split = op.Split(x, ...)
low, high = op.Slice(x, ...), op.Slice(x, ...)
a, b = any_of(split[0], low), any_of(split[1], high)
first = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
second = op.Add(op.Mul(b, cos), op.Mul(a, sin))
whole = op.Concat(first, second)
swapped = op.Concat(second, first)
beside = op.Concat(op.Unsqueeze(first, ...), op.Unsqueeze(second, ...))
by_pairs = op.Reshape(beside, ...)
y = any_of(by_pairs, whole, swapped)


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x", "cos", "sin")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    shape = found.shape("x")
    size = static(shape[-1], "the size that turns", found.anchor)
    if size % 2:
        raise Miss(f"{size} values do not turn in pairs", found.anchor)
    if found.has(swapped):
        raise Miss("its parts stand in the other order", found.anchor)
    takes_pairs = _takes_pairs(found, shape, size)
    _check_result(found, shape, size)
    gives_pairs = found.has(by_pairs)
    for name in ("cos", "sin"):
        covers(found, found[name], (*shape[:-1], size // 2))
    found.work.claim("Rope", "interleaved", str(int(gives_pairs)), found.anchor)
    made: list[NewNode] = []
    places = np.arange(size)
    evens_first, neighbours = np.concatenate([places[::2], places[1::2]]), places // 2
    turned = found["x"]
    if takes_pairs and not gives_pairs:
        turned = _picked(found, "x", evens_first, made)
    if gives_pairs and not takes_pairs:
        turned = _picked(found, "x", np.argsort(evens_first), made)
    repeated = neighbours if gives_pairs else places % (size // 2)
    whole_cos, whole_sin = (_picked(found, name, repeated, made) for name in ("cos", "sin"))
    made.append(turn(turned, whole_cos, whole_sin, result, shape, interleaved=gives_pairs))
    return Replacement(made)


def _picked(found: Found, name: str, places: np.ndarray, made: list[NewNode]) -> gs.Tensor:
    """Return the last axis of a tensor at ``places``."""
    out = found.work.fresh(found[name], "picked")
    if name != "x" and np.array_equal(places[: len(places) // 2], np.arange(len(places) // 2)):
        made.append(NewNode("Concat", (found[name],) * 2, (out,), {"axis": -1}, ""))
        return out
    index = found.work.constant(found[name], "places", places.astype(np.int64))
    made.append(NewNode("Gather", (found[name], index), (out,), {"axis": -1}, ""))
    return out


def _takes_pairs(found: Found, shape: Shape, size: int) -> bool:
    """Tell whether a and b are the even and the odd places, not the halves."""
    rank = len(shape)
    if found.has(split):
        takes_halves(found, split, rank, size)
        return False
    try:
        takes_slice(found, low, rank, (0, size, 2), size)
    except Miss:
        takes_slice(found, low, rank, (0, size // 2, 1), size)
        takes_slice(found, high, rank, (size // 2, size, 1), size)
        return False
    takes_slice(found, high, rank, (1, size, 2), size)
    return True


def _check_result(found: Found, shape: Shape, size: int) -> None:
    """Refuse parts that do not stand along the last axis."""
    if not found.has(by_pairs):
        last_axis(found.node(whole), len(shape), default=0)
        return
    last_axis(found.node(beside), len(shape) + 1, default=0)
    pairs = found.work.shape(found.node(beside).outputs[0])
    flat = found.work.shape(found.anchor.outputs[0])
    if flat != shape or pairs != (*shape[:-1], size // 2, 2):
        raise Miss("does not lay the pairs side by side again", found.anchor)


FUSION = Fusion("Rope", ("Reshape", "Concat"), y, _build, near=5)
