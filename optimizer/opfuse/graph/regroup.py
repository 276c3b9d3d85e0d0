"""Nodes that stand between the parts of one pattern are moved out of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.dims import product
from opfuse.graph.edit import producer
from opfuse.graph.facts import Shape
from opfuse.graph.rewriter import Rewriter


def turned_sum(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """The Transpose of a sum whose second part was turned the other way turns the first alone.

    So the norm behind it reads the sum, as in SqueezeBERT, whose convolutions turn every sum.
    """
    total, perm = producer(node.inputs[0]), node.attrs.get("perm")
    if total is None or total.op != "Add" or perm is None or len(node.inputs[0].outputs) != 1:
        return None
    if any(rewriter.shape(tensor) != rewriter.out_shape(total) for tensor in total.inputs):
        return None
    for one, other in (total.inputs, total.inputs[::-1]):
        turn = producer(other)
        if turn is None or turn.op != "Transpose" or "perm" not in turn.attrs:
            continue
        if [turn.attrs["perm"][axis] for axis in perm] == sorted(perm):
            turned = rewriter.emit("Transpose", [one], {"perm": list(perm)}, node.outputs[0])
            return rewriter.emit("Add", [turned, turn.inputs[0]], {}, node.outputs[0])
    return None


def window_mask(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """[images * windows, ...] scores that are split for a mask of each window stay whole.

    The mask is repeated for the images instead, as Swin's is.
    """
    split, out = rewriter.shape(node.inputs[0]), rewriter.out_shape(node)
    if split is None or out is None or len(split) != len(out) + 1 or out[1:] != split[2:]:
        return None
    if out[0] != split[0] * split[1]:
        return None
    inner, masks = _without_masks(rewriter, node.inputs[0], split)
    apart = producer(inner)
    if not masks or apart is None or apart.op != "Reshape":
        return None
    if rewriter.shape(apart.inputs[0]) != out:
        return None
    mask = masks[0]
    for other in masks[1:]:  # Swin 2 adds the same one twice
        mask = rewriter.emit("Add", [mask, other], {}, node.outputs[0])
    whole = _repeated(rewriter, mask, inner)
    return rewriter.emit("Add", [apart.inputs[0], whole], {}, node.outputs[0])


def _without_masks(
    rewriter: Rewriter, tensor: gs.Tensor, split: Shape
) -> tuple[gs.Tensor, list[gs.Tensor]]:
    """Return what masks of [1, windows, ...], whose sizes are numbers, are added to, and those."""
    masks: list[gs.Tensor] = []
    while (total := producer(tensor)) is not None and total.op == "Add":
        for inner, mask in (total.inputs, total.inputs[::-1]):
            shape = rewriter.shape(mask) or ()
            if len(shape) == len(split) and shape[:2] == (1, split[1]) and _numbers(shape):
                masks.append(mask)
                tensor = inner
                break
        else:
            break
    return tensor, masks


def _numbers(shape: Shape) -> list[int]:
    """Return the sizes where all are numbers, else nothing."""
    sizes = [dim for dim in shape if isinstance(dim, int)]
    return sizes if len(sizes) == len(shape) else []


def _repeated(rewriter: Rewriter, mask: gs.Tensor, like: gs.Tensor) -> gs.Tensor:
    """Return a [1, windows, ...] mask as [images * windows, ...]; ``like`` is split in the two."""
    rest = _numbers(rewriter.shape(mask) or ())[1:]
    images = rewriter.emit("Shape", [like], {"start": 0, "end": 1}, mask)
    sizes = rewriter.constant(mask, np.array(rest, np.int64))
    target = rewriter.emit("Concat", [images, sizes], {"axis": 0}, mask)
    copies = rewriter.emit("Expand", [mask, target], {}, mask)
    flat = rewriter.constant(mask, np.array([-1, *rest[1:]], np.int64))
    return rewriter.emit("Reshape", [copies, flat], {}, mask)


def split_scores(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Scores that are split into rows and columns, for a bias of each, stay whole.

    The sum of the biases is made whole instead: SAM's and ViTDet's relative positions.
    """
    split, out = rewriter.shape(node.inputs[0]), rewriter.out_shape(node)
    if split is None or out is None or len(out) < 3 or len(split) != len(out) + 2:
        return None
    rows, columns = product(split[-4:-2]), product(split[-2:])
    if out != (*split[:-4], rows, columns):
        return None
    found = _biased(rewriter, node.inputs[0], split, out)
    if found is None or len(found[1]) < 2:
        return None
    scores, (total, *others) = found
    for other in others:
        total = rewriter.emit("Add", [total, other], {}, node.outputs[0])
    if rewriter.shape(total) != split:
        return None
    whole = rewriter.emit("Reshape", [total, *node.inputs[1:]], dict(node.attrs), node.outputs[0])
    return rewriter.emit("Add", [scores, whole], {}, node.outputs[0])


def _biased(
    rewriter: Rewriter, tensor: gs.Tensor, split: Shape, whole: Shape
) -> tuple[gs.Tensor, list[gs.Tensor]] | None:
    """Return the scores before they were split, and what was added to them since."""
    node = producer(tensor)
    if node is None or rewriter.shape(tensor) != split or len(tensor.outputs) != 1:
        return None
    if node.op == "Reshape":
        scores = node.inputs[0]
        before = producer(scores)
        known = before is not None and before.op in ("MatMul", "Mul", "Div")
        return (scores, []) if known and rewriter.shape(scores) == whole else None
    if node.op != "Add":
        return None
    for inner, bias in (node.inputs, node.inputs[::-1]):
        found = _biased(rewriter, inner, split, whole)
        if found is not None:
            return found[0], [*found[1], bias]
    return None


def turned_pair(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """The two parts that rope turns stand in a Concat of their own, not among others.

    Exporters put the rest of each head into the same Concat.
    """
    parts, axis = list(node.inputs), node.attrs.get("axis")
    if len(parts) < 3 or axis is None:
        return None
    for place, pair in enumerate(pairwise(parts)):
        if _turns(*pair):
            joined = rewriter.emit("Concat", list(pair), {"axis": axis}, node.outputs[0])
            whole = [*parts[:place], joined, *parts[place + 2 :]]
            return rewriter.emit("Concat", whole, {"axis": axis}, node.outputs[0])
    return None


def _turns(first: gs.Tensor, second: gs.Tensor) -> bool:
    """Tell whether the two are a cos - b sin and b cos + a sin."""
    less, more = producer(first), producer(second)
    if less is None or more is None or (less.op, more.op) != ("Sub", "Add"):
        return False
    minus, plus = (list(_factors(part)) for part in (less, more))
    if len(minus) != 2 or len(plus) != 2:
        return False
    four = minus[0] | minus[1]
    return len(four) == 4 and plus[0] | plus[1] == four and plus[0] not in minus


def _factors(node: gs.Node) -> Iterator[frozenset[int]]:
    for tensor in node.inputs:
        product = producer(tensor)
        if product is not None and product.op == "Mul":
            yield frozenset(map(id, product.inputs))
