"""A convolution over patches that lie side by side as the product that it is, as GemmAct.

Vision transformers cut an image into patches by a Conv whose kernel is its stride, and lay the
patches in a row: Conv, Reshape, Transpose, or Conv and Transpose where rows stay rows. One product
of [batch, patches, channels * patch] with the turned weight computes the same. It takes the place
where the plugin library has the op: TensorRT has kernels for convolutions, but those of fp16 sum
less exactly than the plugin (the error of ViT-B/16 on an H100 was twice that of torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.fusions.guards import text
from opfuse.graph.edit import is_standard
from opfuse.graph.fusion import Miss, NewNode, Work
from opfuse.graph.weights import MatrixValues

__all__ = ["FUSION"]

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class _Patches:
    """A Conv and what lays its patches in a row: the counts and sizes of patches by axis."""

    nodes: tuple[gs.Node, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    flat: bool  # whether the patches are one axis of the result

    @property
    def conv(self) -> gs.Node:
        """The convolution."""
        return self.nodes[0]


class _PatchProduct:
    """Follows each convolution to the axis of its channels."""

    kind = "GemmAct"

    def run(self, work: Work) -> None:
        """Take every convolution whose patches touch and do not overlap."""
        for conv in work.nodes(("Conv",)):
            behind = _behind(work, conv)
            if behind and _is_half(work, conv):
                try:
                    self._apply(work, _patches(work, conv, behind))
                except Miss as miss:
                    work.miss(self.kind, conv, miss, behind)

    def _apply(self, work: Work, found: _Patches) -> None:
        x, weight, *bias = found.conv.inputs
        channels, axes = int(weight.shape[1]), range(len(found.sizes))
        cut = [size for pair in zip(found.counts, found.sizes, strict=True) for size in pair]
        outer = [prod(found.counts)] if found.flat else [*found.counts]
        grid, inner = [2 + 2 * axis for axis in axes], [3 + 2 * axis for axis in axes]
        rows = work.fresh(x, "patches")
        nodes, read = [], x
        for op, result, how in (
            ("Reshape", work.fresh(x, "cut"), [0, channels, *cut]),
            ("Transpose", work.fresh(x, "by_patch"), [0, *grid, 1, *inner]),
            ("Reshape", rows, [0, *outer, channels * prod(found.sizes)]),
        ):
            sizes = work.constant(x, "sizes", np.array(how, np.int64))
            inputs = (read, sizes) if op == "Reshape" else (read,)
            attrs = {} if op == "Reshape" else {"perm": how}
            nodes.append(NewNode(op, inputs, (result,), attrs, ""))
            read = result
        matrix = work.constant(weight, "matrix", MatrixValues(weight, work.base_dir))
        (result,) = found.nodes[-1].outputs
        given = (rows, matrix, *bias)
        nodes.append(NewNode(self.kind, given, (result,), {"activation": "none"}))
        work.replace(self.kind, found.conv, found.nodes, nodes)


def _behind(work: Work, conv: gs.Node) -> list[gs.Node]:
    """What moves the channels to the end: a Transpose, or a Reshape and a Transpose."""
    found: list[gs.Node] = []
    node = conv
    while len(node.outputs[0].outputs) == 1 and not work.is_output(node.outputs[0]):
        (node,) = node.outputs[0].outputs
        if not is_standard(node) or node.op not in ("Reshape", "Transpose") or len(found) > 1:
            return []
        found.append(node)
        if node.op == "Transpose":
            return found
    return []


def _is_half(work: Work, conv: gs.Node) -> bool:
    types = {work.dtype(tensor) for tensor in conv.inputs}
    constant = all(isinstance(tensor, gs.Constant) for tensor in conv.inputs[1:])
    return constant and len(types) == 1 and types <= set(_HALVES)


def _patches(work: Work, conv: gs.Node, behind: Sequence[gs.Node]) -> _Patches:
    """The patches of a convolution, if it is a product over them.

    Raises:
        Miss: They overlap or leave gaps, or their sizes are not known.
    """
    _, channels, *sizes = (int(size) for size in conv.inputs[1].shape)
    shape = work.shape(conv.inputs[0])
    ones, zeros = [1] * len(sizes), [0] * (2 * len(sizes))
    for name, plain, want in (
        ("strides", ones, sizes),
        ("dilations", ones, ones),
        ("pads", zeros, zeros),
        ("kernel_shape", sizes, sizes),
        ("group", 1, 1),
    ):
        if (have := conv.attrs.get(name, plain)) != want:
            raise Miss(f"{name} is {have}, want {want} of patches side by side", conv)
    if conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Miss(f"auto_pad is {conv.attrs['auto_pad']}", conv)
    if shape is None or len(shape) != len(sizes) + 2 or shape[1] != channels:
        raise Miss(f"reads {text(shape)}, want (batch, {channels}, ...)", conv)
    whole = [size for size in shape[2:] if isinstance(size, int)]
    if len(whole) < len(sizes) or any(n % size for n, size in zip(whole, sizes, strict=True)):
        raise Miss(f"reads {text(shape)}, which is not known to be patches of {sizes}", conv)
    counts = tuple(n // size for n, size in zip(whole, sizes, strict=True))
    flat = len(behind) == 2
    _check_order(work, behind, counts, flat)
    return _Patches((conv, *behind), counts, tuple(sizes), flat)


def _check_order(
    work: Work, behind: Sequence[gs.Node], counts: tuple[int, ...], flat: bool
) -> None:
    """Refuse what does not keep the patches in their order, with the channels behind them."""
    last = behind[-1]
    rank = 3 if flat else len(counts) + 2
    want = [0, *range(2, rank), 1]
    if list(last.attrs.get("perm", reversed(range(rank)))) != want:
        raise Miss(f"turns the patches by {last.attrs.get('perm')}, want {want}", last)
    if flat:
        row, given = (work.shape(tensor) for tensor in (behind[0].outputs[0], behind[0].inputs[0]))
        if row is None or given is None or row != (*given[:2], prod(counts)):
            raise Miss(f"gives {text(row)}, want (batch, channels, {prod(counts)})", behind[0])


FUSION = _PatchProduct()
