"""Parts of a tensor that are taken in a roundabout way are taken from the tensor itself."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.edit import producer
from opfuse.graph.rewriter import Rewriter

_TO_THE_END = np.iinfo(np.int64).max


def one_of_each_pair(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """[..., 2n] -> [..., n, 2], of whose last axis one place is taken, is every second value."""
    place = _place(rewriter, node)
    pairs = producer(node.inputs[0])
    if place is None or pairs is None or pairs.op not in ("Reshape", "Unsqueeze"):
        return None
    source = pairs.inputs[0]
    have, split = rewriter.shape(source), rewriter.out_shape(pairs)
    if have is None or split is None or len(split) != len(have) + 1 or split[-1] != 2:
        return None
    if split[:-2] != have[:-1] or not isinstance(have[-1], int) or split[-2] * 2 != have[-1]:
        return None
    like = node.outputs[0]
    bounds = [
        rewriter.constant(like, np.array([value], np.int64))
        for value in (place, _TO_THE_END, -1, 2)
    ]
    taken = rewriter.emit("Slice", [source, *bounds], {}, like)
    if node.op == "Gather":
        return taken
    return rewriter.emit("Unsqueeze", [taken, bounds[2]], {}, like)


def _place(rewriter: Rewriter, node: gs.Node) -> int | None:
    """Return which of the two places a Slice or a Gather of a scalar takes, if it does that."""
    shape = rewriter.shape(node.inputs[0])
    if shape is None or shape[-1:] != (2,):
        return None
    if node.op == "Gather":
        index = rewriter.integers(node.inputs[1])
        scalar = rewriter.shape(node.inputs[1]) == ()
        if index is None or not scalar or node.attrs.get("axis", 0) % len(shape) != len(shape) - 1:
            return None
        return index[0] % 2
    values = [rewriter.integers(tensor) for tensor in node.inputs[1:]]
    if len(values) < 3 or any(value is None or len(value) != 1 for value in values):
        return None
    start, end, axis, *step = (value[0] for value in values if value)
    if axis % len(shape) != len(shape) - 1 or step not in ([], [1]):
        return None
    start, end = (min(bound + 2 if bound < 0 else bound, 2) for bound in (start, end))
    return start if end - start == 1 else None


def split_of_concat(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """The parts that a Split takes out of a Concat are what went into it."""
    whole = producer(node.inputs[0])
    if whole is None or whole.op != "Concat" or len(whole.inputs) != len(node.outputs):
        return None
    shape = rewriter.shape(node.inputs[0])
    if shape is None:
        return None
    axes = [int(n.attrs.get("axis", 0)) % len(shape) for n in (whole, node)]
    parts = [rewriter.shape(tensor) for tensor in whole.inputs]
    if axes[0] != axes[1] or parts != [rewriter.shape(tensor) for tensor in node.outputs]:
        return None
    rewriter.become_identities(node, *whole.inputs)
    return None
