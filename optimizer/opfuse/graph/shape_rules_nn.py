"""Shape rules of normalisations, convolutions, pooling, and resizing."""

from __future__ import annotations

from onnx import TensorProto

from opfuse.graph.dims import Dim, Sym
from opfuse.graph.facts import Fact, Op, Rule, Shape

INT64 = int(TensorProto.INT64)


def _layer_normalization(op: Op) -> tuple[Fact, ...]:
    shape, stash = op.shape(), int(op.attr("stash_type", 1))
    if shape is None:
        return Fact(None, op.dtype()), Fact(None, stash), Fact(None, stash)
    axis = int(op.attr("axis", -1)) % len(shape)
    statistics = Fact((*shape[:axis], *[1] * (len(shape) - axis)), stash)
    return Fact(shape, op.dtype()), statistics, statistics


def _like_first(op: Op) -> Fact:
    return Fact(op.shape(), op.dtype())


def _batch_normalization(op: Op) -> tuple[Fact, ...]:
    statistics = Fact(op.shape(3), op.dtype(3))
    return Fact(op.shape(), op.dtype()), statistics, statistics


def _conv(op: Op) -> Fact:
    shape, weight = op.shape(), op.shape(1)
    if shape is None or weight is None:
        return Fact(None, op.dtype())
    kernel = tuple(op.attr("kernel_shape", weight[2:]))
    return Fact((shape[0], weight[0], *_windows(op, shape[2:], kernel)), op.dtype())


def _pool(op: Op) -> tuple[Fact, ...]:
    shape = op.shape()
    if shape is None:
        return Fact(None, op.dtype()), Fact(None, INT64)
    out = (*shape[:2], *_windows(op, shape[2:], tuple(op.attr("kernel_shape"))))
    return Fact(out, op.dtype()), Fact(out, INT64)


def _windows(op: Op, sizes: Shape, kernel: Shape) -> Shape:
    """How many windows fit into each spatial axis."""
    rank = len(sizes)
    strides = op.attr("strides", [1] * rank)
    dilations = op.attr("dilations", [1] * rank)
    pads = op.attr("pads", [0] * 2 * rank)
    same = op.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    round_up = int(op.attr("ceil_mode", 0))
    out: list[Dim] = []
    for axis, size in enumerate(sizes):
        stride = strides[axis]
        if same:
            out.append((size + stride - 1) // stride)
            continue
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        room = size + pads[axis] + pads[axis + rank] - reach
        count = (room + (stride - 1) * round_up) // stride + 1
        # A window that would start in the trailing padding is not counted.
        if round_up and isinstance(count, int) and isinstance(size, int):
            count -= (count - 1) * stride >= size + pads[axis]
        out.append(count)
    return tuple(out)


def _conv_transpose(op: Op) -> Fact:
    shape, weight = op.shape(), op.shape(1)
    if shape is None or weight is None:
        return Fact(None, op.dtype())
    channels = weight[1] * int(op.attr("group", 1))
    rank = len(shape) - 2
    if op.attr("output_shape") is not None or op.attr("auto_pad", "NOTSET") != "NOTSET":
        return Fact((shape[0], channels, *(op.unknown_dim() for _ in range(rank))), op.dtype())
    strides = op.attr("strides", [1] * rank)
    dilations = op.attr("dilations", [1] * rank)
    pads, extra = op.attr("pads", [0] * 2 * rank), op.attr("output_padding", [0] * rank)
    spatial = tuple(
        strides[axis] * (shape[axis + 2] - 1)
        + extra[axis]
        + (weight[axis + 2] - 1) * dilations[axis]
        + 1
        - pads[axis]
        - pads[axis + rank]
        for axis in range(rank)
    )
    return Fact((shape[0], channels, *spatial), op.dtype())


def _global_pool(op: Op) -> Fact:
    shape = op.shape()
    if shape is None:
        return Fact(None, op.dtype())
    return Fact((*shape[:2], *[1] * (len(shape) - 2)), op.dtype())


def _resize(op: Op) -> Fact:
    shape, sizes, scales = op.shape(), op.dims(3), op.value(2)
    if shape is None:
        return Fact(None, op.dtype())
    plain = op.attr("axes") is None and op.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    if plain and sizes is not None and len(sizes) == len(shape):
        return Fact(tuple(map(op.size, sizes)), op.dtype())
    if plain and scales is not None and scales.size == len(shape):
        out = (_scaled(op, dim, scale) for dim, scale in zip(shape, scales.ravel(), strict=True))
        return Fact(tuple(out), op.dtype())
    return Fact(tuple(op.unknown_dim() for _ in shape), op.dtype())


def _scaled(op: Op, dim: Dim, scale: float) -> Dim:
    if float(scale).is_integer():
        return dim * int(scale)
    return op.unknown_dim() if isinstance(dim, Sym) else int(dim * scale)


RULES: dict[str, Rule] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GroupNormalization": _like_first,
    "InstanceNormalization": _like_first,
    "LayerNormalization": _layer_normalization,
    "LpPool": _pool,
    "MaxPool": _pool,
    "RMSNormalization": _like_first,
    "Resize": _resize,
}
