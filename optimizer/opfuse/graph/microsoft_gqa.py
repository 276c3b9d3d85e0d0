"""onnxruntime's GroupQueryAttention in standard operators: its cache, its rotation, its mask.

Each sequence of a batch has its own length: ``seqlens_k`` + 1 keys with the new ones, which stand
behind its past. The cache may be longer, so a new key goes to its place instead of to the end.
Of a prompt that is padded, the rows of padding are not specified and differ from onnxruntime's.
"""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph.expansion import Entry, Expansion, Results, Unclear
from opfuse.graph.microsoft_attention import (
    attend,
    last_dim,
    pieces,
    rotate,
    size_of,
    to_heads,
)

_POSITIONS, _BIAS = 9, 10  # inputs


def _gqa(e: Expansion) -> Results:
    heads, kv_heads = e.integer("num_heads"), e.integer("kv_num_heads")
    if kv_heads <= 0 or heads % kv_heads:
        raise Unclear(f"{heads} heads do not divide by {kv_heads}")
    if e.integer("local_window_size", -1) == 0:
        raise Unclear("has a window of no keys, of which some versions see none and others all")
    if e.get(_POSITIONS) is not None:
        raise Unclear("takes its positions from outside")
    if (e.get(3) is None) != (e.get(4) is None):
        raise Unclear("has a cache of one of k and v")
    q, k, v = _projections(e, heads, kv_heads)
    if len(e.shape(e[5])) != 1:
        raise Unclear(f"{e[5].name} has rank {len(e.shape(e[5]))}, want 1")
    places = _places(e, q)
    if e.integer("do_rotary"):
        axis = e.integers(1)
        angles = [e("Unsqueeze", e("Gather", e[i], places), axis) for i in (7, 8)]
        turn = bool(e.integer("rotary_interleaved"))
        q, k = (rotate(e, x, *angles, interleaved=turn) for x in (q, k))
    k, v = (
        new if past is None else _cached(e, past, new, places)
        for past, new in ((e.get(3), k), (e.get(4), v))
    )
    mask = _mask(e, q, k, places)
    group = heads // kv_heads
    return attend(e, q, _repeated(e, k, group), _repeated(e, v, group), mask), k, v


def _projections(e: Expansion, heads: int, kv_heads: int) -> list[gs.Tensor]:
    """Return q, k, and v by heads; they come apart or as one tensor."""
    if e.get(1) is None:
        width = last_dim(e, e[0])
        size = width // (heads + 2 * kv_heads)
        tensors = pieces(e, e[0], [heads * size, kv_heads * size, kv_heads * size])
    else:
        tensors = [e[0], e[1], e[2]]
    counts = (heads, kv_heads, kv_heads)
    return [to_heads(e, *pair) for pair in zip(tensors, counts, strict=True)]


def _places(e: Expansion, q: gs.Tensor) -> gs.Tensor:
    """Return where each new key goes: [batch, positions]."""
    count = size_of(e, q, 2)
    lengths = e("Add", e("Cast", e[5], to=TensorProto.INT64), e.index(1))
    past = e("Max", e("Sub", lengths, count), e.index(0))  # a prompt may be shorter than padded
    new = e("Range", e.index(0), count, e.index(1))
    return e("Add", e("Unsqueeze", past, e.integers(1)), new)


def _cached(e: Expansion, past: gs.Tensor, new: gs.Tensor, places: gs.Tensor) -> gs.Tensor:
    """Return the cache, made long enough, with ``new`` at its places."""
    total = e("Reshape", e("Cast", e[6], to=TensorProto.INT64), e.integers(1))
    have = e("Shape", past, start=2, end=3)
    missing = e("Sub", e("Max", total, have), have)
    front, size = e("Shape", past, start=0, end=2), e("Shape", past, start=3, end=4)
    room = e("Expand", e.scalar(0.0, past), e("Concat", front, missing, size, axis=0))
    whole = e("Concat", past, room, axis=2)
    rows = e("Range", e.index(0), e("Squeeze", e("Max", total, have)), e.index(1))
    first = e("Slice", places, e.integers(0), e.integers(1), e.integers(1))
    old = e("Unsqueeze", e("Less", rows, first), e.integers(1, 3))
    whole = e("Where", old, whole, e.scalar(0.0, past))  # onnxruntime clears what holds nothing
    target = e("Concat", e("Shape", new, start=0, end=3), e.integers(1), axis=0)
    batch = e("Range", e.index(0), size_of(e, new, 0), e.index(1))
    heads = e("Range", e.index(0), size_of(e, new, 1), e.index(1))
    parts = (
        e("Unsqueeze", batch, e.integers(1, 2, 3)),
        e("Unsqueeze", heads, e.integers(0, 2, 3)),
        e("Unsqueeze", places, e.integers(1, 3)),
    )
    indices = e("Concat", *(e("Expand", part, target) for part in parts), axis=-1)
    return e("ScatterND", whole, indices, new)


def _mask(e: Expansion, q: gs.Tensor, k: gs.Tensor, places: gs.Tensor) -> gs.Tensor:
    """A key is seen by the queries from its own place on, or by a window of them."""
    columns = e("Range", e.index(0), size_of(e, k, 2), e.index(1))
    rows = e("Unsqueeze", places, e.integers(1, 3))
    seen = e("LessOrEqual", columns, rows)
    window = e.integer("local_window_size", -1)
    if window > 0:
        seen = e("And", seen, e("Greater", columns, e("Sub", rows, e.index(window))))
    mask = e("Where", seen, e.scalar(0.0, q), e.scalar(-math.inf, q))
    bias = e.get(_BIAS)
    return mask if bias is None else e("Add", _of_all_keys(e, bias, k), mask)


def _of_all_keys(e: Expansion, bias: gs.Tensor, k: gs.Tensor) -> gs.Tensor:
    """Return a bias as long as the cache; it has no more than the keys that may be seen."""
    shape = e.shape(bias)
    if shape[-1] == e.shape(k)[2]:
        return bias
    missing = e("Sub", e("Shape", k, start=2, end=3), e("Shape", bias, start=-1))
    none = e.integers(*[0] * (2 * len(shape) - 1))
    return e("Pad", bias, e("Concat", none, missing, axis=0))


def _repeated(e: Expansion, x: gs.Tensor, group: int) -> gs.Tensor:
    """Return each key/value head once for each query head that it serves."""
    if group == 1:
        return x
    heads, size = e.shape(x)[1], last_dim(e, x)
    if not isinstance(heads, int):
        raise Unclear(f"the number of heads of {x.name} is not known")
    copies = e("Expand", e("Unsqueeze", x, e.integers(2)), e.integers(1, 1, group, 1, 1))
    return e("Reshape", copies, e.integers(0, heads * group, -1, size))


ENTRIES = {
    "GroupQueryAttention": Entry(
        "FlashAttention",
        _gqa,
        (
            *("num_heads", "kv_num_heads", "scale", "softcap"),
            *("do_rotary", "rotary_interleaved", "local_window_size"),
        ),
        {
            "causal": 1,
            "kv_cache_bit_width": 0,
            "qk_output": 0,
            "smooth_softmax": 0,
            "sliding_window_cache": 0,
            "k_quant_type": "NONE",
            "v_quant_type": "NONE",
            "qk_norm_epsilon": 1e-6,
        },
        inputs=11,
        outputs=(0, 1, 2),
    ),
}
