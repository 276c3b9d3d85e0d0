"""onnxruntime's attention operators in standard ones: heads, masks, caches, rotations.

q, k, v are [batch, heads, positions, size] within. As in onnxruntime's kernels, a key that a mask
of integers hides has ``mask_filter_value`` added to its score, and one that stands behind its query
the lowest number there is.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph.expansion import Entry, Expansion, Results, Unclear
from opfuse.graph.rewriter import numpy_dtype

_FILTER = -10000.0  # mask_filter_value where a node has none
_SWAP = [0, 2, 1, 3]


def last_dim(e: Expansion, tensor: gs.Tensor) -> int:
    """Return the last dimension of ``tensor``, which must be a number."""
    shape = e.shape(tensor)
    if not shape or not isinstance(shape[-1], int):
        raise Unclear(f"the last dimension of {tensor.name} is not known")
    return shape[-1]


def to_heads(e: Expansion, x: gs.Tensor, heads: int) -> gs.Tensor:
    """[batch, positions, heads * size] -> [batch, heads, positions, size]."""
    width = last_dim(e, x)
    if heads <= 0 or width % heads:
        raise Unclear(f"{width} features do not divide by {heads} heads")
    return e("Transpose", e("Reshape", x, e.integers(0, 0, heads, width // heads)), perm=_SWAP)


def from_heads(e: Expansion, x: gs.Tensor) -> gs.Tensor:
    """[batch, heads, positions, size] -> [batch, positions, heads * size]."""
    heads = e.shape(x)[1]
    if not isinstance(heads, int):
        raise Unclear(f"the number of heads of {x.name} is not known")
    return e("Reshape", e("Transpose", x, perm=_SWAP), e.integers(0, 0, heads * last_dim(e, x)))


def attend(
    e: Expansion, q: gs.Tensor, k: gs.Tensor, v: gs.Tensor, mask: gs.Tensor | None
) -> gs.Tensor:
    """softmax(scale q k^T + mask) v, the scores bounded by ``softcap`` if the node has one."""
    scale = e.number("scale", 0.0) or 1 / math.sqrt(last_dim(e, q))
    scores = e("MatMul", q, e("Transpose", k, perm=[0, 1, 3, 2]))
    scores = e("Mul", scores, e.scalar(scale, q))
    cap = e.number("softcap", 0.0)
    if cap:
        scores = e("Mul", e("Tanh", e("Div", scores, e.scalar(cap, q))), e.scalar(cap, q))
    if mask is not None:
        scores = e("Add", scores, mask)
    return from_heads(e, e("MatMul", e("Softmax", scores, axis=-1), v))


def size_of(e: Expansion, x: gs.Tensor, axis: int) -> gs.Tensor:
    """Return one size of ``x`` as a scalar of the graph."""
    return e("Squeeze", e("Shape", x, start=axis, end=axis + 1))


def _visible(e: Expansion, q: gs.Tensor, k: gs.Tensor, past: gs.Tensor | None) -> gs.Tensor:
    """Query i sees key j where j <= i + past: bool [queries, keys]."""
    zero, one = e.index(0), e.index(1)
    rows = e("Range", zero, size_of(e, q, 2), one)
    if past is not None:
        rows = e("Add", rows, size_of(e, past, 2))
    columns = e("Range", zero, size_of(e, k, 2), one)
    return e("LessOrEqual", columns, e("Unsqueeze", rows, e.integers(1)))


def _padding(e: Expansion, mask: gs.Tensor, batch: object, keys: gs.Tensor) -> gs.Tensor:
    """What is added to scores: 0, or the filter where ``mask`` hides a key; rank 4.

    A mask is [batch, keys] or [batch, queries, keys], above 0 where a key is seen, or [batch]: how
    many keys are.
    """
    shape, axes = e.shape(mask), {1: (1, 2), 2: (1, 2), 3: (1,)}
    if len(shape) not in axes:
        raise Unclear(f"mask {mask.name} has rank {len(shape)}, want 1, 2, or 3")
    if len(shape) == 1:
        if shape != (batch,):
            raise Unclear(f"mask {mask.name} is ({shape[0]}), want lengths for batch {batch}")
        lengths = e("Unsqueeze", e("Cast", mask, to=TensorProto.INT64), e.integers(1))
        seen = e("Less", e("Range", e.index(0), size_of(e, keys, 2), e.index(1)), lengths)
    elif isinstance(shape[-1], int) and shape[-1] != e.shape(keys)[2]:  # [1, 1] stands for none
        raise Unclear(f"mask {mask.name} is of {shape[-1]} keys, want {e.shape(keys)[2]}")
    elif e.dtype(mask) == TensorProto.BOOL:
        seen = mask
    else:
        seen = e("Greater", mask, e.scalar(0, mask))
    filled = e.scalar(e.number("mask_filter_value", _FILTER), keys)
    added = e("Where", seen, e.scalar(0.0, keys), filled)
    return e("Unsqueeze", added, e.integers(*axes[len(shape)]))


def mask_of(
    e: Expansion,
    q: gs.Tensor,
    k: gs.Tensor,
    padding: gs.Tensor | None,
    bias: gs.Tensor | None,
    past: gs.Tensor | None,
) -> gs.Tensor | None:
    """Return what is added to the scores, or None."""
    mask = None if padding is None else _padding(e, padding, e.shape(q)[0], k)
    if e.integer("unidirectional"):
        before = 0 if past is None else e.shape(past)[2]
        queries, keys = e.shape(q)[2], e.shape(k)[2]
        if keys != before + queries:  # of which onnxruntime shows all to the last query
            raise Unclear(f"is causal with {queries} queries and {keys} keys")
        lowest = float(np.finfo(numpy_dtype(e.dtype(q)) or np.float32).min)
        seen = e.scalar(0.0, q) if mask is None else mask
        mask = e("Where", _visible(e, q, k, past), seen, e.scalar(lowest, q))
    if bias is None or mask is None:
        return bias if mask is None else mask
    return e("Add", bias, mask)


def pieces(e: Expansion, x: gs.Tensor, widths: list[int]) -> list[gs.Tensor]:
    """Return the stretches of these lengths of the last axis."""
    ends = np.cumsum(widths).tolist()
    starts = [0, *ends[:-1]]
    last = e.integers(-1)
    return [
        e("Slice", x, e.integers(start), e.integers(end), last)
        for start, end in zip(starts, ends, strict=True)
    ]


def _attention(e: Expansion) -> Results:
    x, weight, past, heads = e[0], e[1], e.get(4), e.integer("num_heads")
    if len(e.shape(x)) != 3:
        raise Unclear(f"{x.name} has rank {len(e.shape(x))}, want 3")
    total = last_dim(e, weight)
    widths = [int(n) for n in e.node.attrs.get("qkv_hidden_sizes", ()) or [total // 3] * 3]
    if sum(widths) != total or len(widths) != 3 or widths[0] != widths[1]:
        raise Unclear(f"a weight of {total} columns does not hold q, k, and v of {widths}")
    packed = e("MatMul", x, weight)
    bias = e.get(2)
    if bias is not None:
        packed = e("Add", packed, bias)
    q, k, v = (to_heads(e, part, heads) for part in pieces(e, packed, widths))
    if past is not None:
        old = [e("Gather", past, e.index(i), axis=0) for i in (0, 1)]
        k, v = (e("Concat", *pair, axis=2) for pair in zip(old, (k, v), strict=True))
        past = old[0]
    mask = mask_of(e, q, k, e.get(3), e.get(5), past)
    present = None
    if len(e.node.outputs) > 1:
        if widths[2] != widths[1]:
            raise Unclear(f"joins keys of {widths[1]} and values of {widths[2]} to one cache")
        present = e("Concat", *(e("Unsqueeze", t, e.integers(0)) for t in (k, v)), axis=0)
    return attend(e, q, k, v, mask), present


def _multi_head(e: Expansion) -> Results:
    heads, tensors = e.integer("num_heads"), [e[0], e[1], e[2]]
    ranks = [len(e.shape(tensor)) for tensor in tensors]
    if ranks not in ([3, 3, 3], [3, 4, 4]):
        raise Unclear(f"q, k, v have ranks {', '.join(map(str, ranks))}, want 3, 3, 3 or 3, 4, 4")
    bias, past = e.get(3), (e.get(6), e.get(7))
    if ranks[1] == 4 and (bias is not None or past != (None, None)):
        raise Unclear("k and v have heads already, and a bias or a cache besides")
    if bias is not None:
        parts = pieces(e, bias, [last_dim(e, tensor) for tensor in tensors])
        tensors = [e("Add", *pair) for pair in zip(tensors, parts, strict=True)]
    q, k, v = (
        to_heads(e, tensor, heads) if rank == 3 else tensor
        for tensor, rank in zip(tensors, ranks, strict=True)
    )
    if past[0] is not None and past[1] is not None:
        k, v = e("Concat", past[0], k, axis=2), e("Concat", past[1], v, axis=2)
    mask = mask_of(e, q, k, e.get(4), e.get(5), past[0])
    return attend(e, q, k, v, mask), k, v


def _rotary(e: Expansion) -> Results:
    x, rank = e[0], len(e.shape(e[0]))
    half, interleaved = last_dim(e, e[2]), bool(e.integer("interleaved"))
    if rank == 3:
        heads = e.integer("num_heads") or last_dim(e, x) // (2 * half)
        apart = to_heads(e, x, heads)
        return (from_heads(e, rotate(e, apart, *_angles(e, x, 1), interleaved=interleaved)),)
    if rank != 4:
        raise Unclear(f"{x.name} has rank {rank}, want 3 or 4")
    return (rotate(e, x, *_angles(e, x, 2), interleaved=interleaved),)


def _angles(e: Expansion, x: gs.Tensor, axis: int) -> list[gs.Tensor]:
    """Cosines and sines of each position: [batch or 1, 1, positions, half]."""
    positions, ranks = e[1], len(e.shape(e[1]))
    if ranks not in (1, 2):
        raise Unclear(f"{positions.name} has rank {ranks}, want 1 or 2")
    if ranks == 1:  # where the first one stands
        positions = e("Add", positions, e("Range", e.index(0), size_of(e, x, axis), e.index(1)))
    axes = e.integers(*((1,) if ranks == 2 else (0, 1)))
    return [e("Unsqueeze", e("Gather", cache, positions), axes) for cache in (e[2], e[3])]


def rotate(
    e: Expansion, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, *, interleaved: bool
) -> gs.Tensor:
    """Turn the first values of each head, as many as the caches tell; the rest stay."""
    size, half = last_dim(e, x), last_dim(e, cos)
    if e.integer("rotary_embedding_dim") not in (0, 2 * half) or 2 * half > size:
        raise Unclear(f"turns {e.integer('rotary_embedding_dim')} values by {half} angles")
    rest = []
    if 2 * half < size:
        x, kept = pieces(e, x, [2 * half, size - 2 * half])
        rest = [kept]
    if interleaved:
        y = _turn_pairs(e, x, cos, sin)
    else:
        a, b = pieces(e, x, [half, half])
        first = e("Sub", e("Mul", a, cos), e("Mul", b, sin))
        second = e("Add", e("Mul", b, cos), e("Mul", a, sin))
        y = e("Concat", first, second, axis=-1)
    return e("Concat", y, *rest, axis=-1) if rest else y


def _turn_pairs(e: Expansion, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turn each two neighbours."""
    last, two = e.integers(-1), e.integers(2)
    size = last_dim(e, x)
    flat = e.integers(0, 0, 0, size)
    even, odd = (e("Slice", x, e.integers(i), e.integers(size), last, two) for i in (0, 1))
    sides = [e("Unsqueeze", side, last) for side in (e("Neg", odd), even)]
    turned = e("Reshape", e("Concat", *sides, axis=-1), flat)
    both = [e("Unsqueeze", angle, last) for angle in (cos, sin)]
    wide = [e("Reshape", e("Concat", angle, angle, axis=-1), flat) for angle in both]
    return e("Add", e("Mul", x, wide[0]), e("Mul", turned, wide[1]))


_COMMON = ("num_heads", "scale", "mask_filter_value", "unidirectional")
ENTRIES = {
    "Attention": Entry(
        "FlashAttention",
        _attention,
        (*_COMMON, "qkv_hidden_sizes"),
        {"do_rotary": 0, "past_present_share_buffer": 0},
        inputs=6,
        outputs=(0, 1),
    ),
    "MultiHeadAttention": Entry(
        "FlashAttention", _multi_head, _COMMON, inputs=8, outputs=(0, 1, 2)
    ),
    "RotaryEmbedding": Entry(
        "Rope",
        _rotary,
        ("interleaved", "num_heads", "rotary_embedding_dim"),
        {"is_packed_batching": 0, "scale": 1.0},
        inputs=4,
    ),
}
