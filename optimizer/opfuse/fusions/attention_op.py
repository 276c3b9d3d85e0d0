"""The standard Attention operator (ai.onnx 23) becomes FlashAttention, without its head copies."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions import constant_mask
from opfuse.fusions.attention_body import COUNTED
from opfuse.fusions.attention_operands import fits, heads_of, without_copies
from opfuse.fusions.guards import FLOATS, floating, may_equal, static, text
from opfuse.graph.attention_op import LENGTHS, WINDOW
from opfuse.graph.dims import Dim
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, op

_PADDED = 24  # ai.onnx opset from which the mask may be shorter than the keys
y = op.Attention(Var("q"), Var("k"), Var("v"), ...)


def _build(found: Found) -> Replacement:
    """Take the standard operator (ai.onnx 23) as it is written for 4-D inputs without a cache."""
    node = found.anchor
    dtype = floating(found, "q", "k", "v")
    batch, heads, queries, keys = space = _score_space(found)
    lengths = _lengths(found, batch)
    causal, window = _band(found, queries, keys, counted=lengths is not None)
    key, value = found["k"], found["v"]
    copies: list[gs.Node] = []
    if heads == heads_of(found, key):
        key, value, copies = without_copies(found, key, value)
    made: list[NewNode] = []
    left, triangle, spread = _given(found, space), 0, list[gs.Node]()
    short = _may_be_short(found, left, keys)
    # With those, a triangle of all keys would stand elsewhere; a short mask hides what it lacks.
    if lengths is None and not window and not short:
        left, triangle, spread = constant_mask.settled(found.work, left, space)
    mask = _additive(found, left, dtype, made)
    if short:
        rank = len(found.work.shape(left[0]) or ())
        mask = (_of_all_keys(found, mask[0], rank, made),)
    trailing = [*mask, *([] if lengths is None else [lengths])]
    size = static(found.shape("q")[3], "the head size", node)
    if size < 1:
        raise Miss(f"the head size is {size}, want a number above 0", node)
    attrs = {
        "num_heads": heads,
        "kv_num_heads": heads_of(found, key),
        "scale": float(node.attrs.get("scale", 1 / math.sqrt(size))),
        "causal": max(causal, triangle),
        "window": window,
        "softcap": float(node.attrs.get("softcap", 0.0)),
        "nan_guard": int(bool(trailing)),
        "layout": "BHSD",
        **({} if lengths is None else {"lengths": COUNTED}),
    }
    inputs = (found["q"], key, value, *trailing)
    made.append(NewNode("FlashAttention", inputs, (node.outputs[0],), attrs))
    return Replacement(made, [*copies, *spread], spread)


def _score_space(found: Found) -> tuple[Dim, int, Dim, Dim]:
    """Return the scores' shape, after checking that q, k, and v agree on it and are all there is.

    It is [batch, heads, queries, keys].
    """
    node = found.anchor
    extra = [t for i, t in enumerate(node.inputs[4:], 4) if i != LENGTHS and not t.is_empty()]
    if extra or len([t for t in node.outputs if not t.is_empty()]) > 1:
        raise Miss("has a key/value cache of its own or returns more than y", node)
    q, k, v = (found.shape(name) for name in ("q", "k", "v"))
    if not len(q) == len(k) == len(v) == 4:
        raise Miss(f"q, k, v have ranks {len(q)}, {len(k)}, {len(v)}, want 4", node)
    pairs = [(k[0], q[0]), (k[3], q[3]), *zip(v[:3], k[:3], strict=True)]
    if not all(may_equal(have, want) for have, want in pairs):
        raise Miss(f"q {text(q)}, k {text(k)}, and v {text(v)} do not agree", node)
    return q[0], static(q[1], "the number of heads", node), q[2], k[2]


def _band(found: Found, queries: Dim, keys: Dim, *, counted: bool) -> tuple[int, int]:
    """Return causal and window.

    The last query stands at the last key of a batch where these are counted (ai.onnx 24), and else
    at the key of its own number.
    """
    node = found.anchor
    left, right = (int(node.attrs.get(name, -1)) for name in WINDOW)
    asked = int(node.attrs.get("is_causal", 0))
    if asked not in (0, 1):  # of which some see a triangle, and others all keys
        raise Miss(f"has is_causal={asked}", node, "write is_causal as 0 or 1")
    causal = int(asked or right == 0)
    if not causal and left != right:
        raise Miss(f"sees keys from {left} behind to {right} ahead of a query", node)
    if (causal or left >= 0) and not counted and queries != keys:
        if causal:
            raise Miss(f"is causal with {queries} queries and {keys} keys", node)
        raise Miss(f"has a window over {queries} queries and {keys} keys", node)
    return causal, left + 1


def _lengths(found: Found, batch: Dim) -> gs.Tensor | None:
    """Return how many keys each batch has, where that is given."""
    inputs = found.anchor.inputs
    if len(inputs) <= LENGTHS or inputs[LENGTHS].is_empty():
        return None
    shape = found.work.shape(inputs[LENGTHS])
    if shape is None or len(shape) != 1 or not may_equal(shape[0], batch):
        raise Miss(f"its lengths are {text(shape)}, want ({batch})", found.anchor)
    return inputs[LENGTHS]


def _given(found: Found, space: Shape) -> tuple[gs.Tensor, ...]:
    """Return the mask, additive or of what is kept, or nothing."""
    tensors = found.anchor.inputs
    if len(tensors) < 4 or tensors[3].is_empty():
        return ()
    if found.work.dtype(tensors[3]) not in (onnx.TensorProto.BOOL, *FLOATS):
        raise Miss(f"mask {tensors[3].name} is not floating-point", found.anchor)
    fits(found, tensors[3], space)
    last = (found.work.shape(tensors[3]) or (1,))[-1]
    if isinstance(last, int) and last != space[3]:  # keys past its end are hidden (ai.onnx 24)
        raise Miss(f"mask {tensors[3].name} ends after {last} of {space[3]} keys", found.anchor)
    return (tensors[3],)


def _additive(
    found: Found, given: tuple[gs.Tensor, ...], dtype: int, made: list[NewNode]
) -> tuple[gs.Tensor, ...]:
    if not given or found.work.dtype(given[0]) != onnx.TensorProto.BOOL:
        return given
    tensor = given[0]
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    zero = found.work.constant(tensor, "zero", np.zeros((), kind))
    minus_inf = found.work.constant(tensor, "minus_inf", np.full((), -np.inf, kind))
    mask = found.work.fresh(tensor, "additive", dtype)
    made.append(NewNode("Where", (tensor, zero, minus_inf), (mask,), {}, ""))
    return (mask,)


def _may_be_short(found: Found, given: tuple[gs.Tensor, ...], keys: Dim) -> bool:
    """Tell whether a mask may be shorter than the keys, of which it then hides the rest."""
    shape = found.work.shape(given[0]) if given else None
    return shape is not None and found.work.opset >= _PADDED and shape[-1] != keys


def _of_all_keys(found: Found, tensor: gs.Tensor, rank: int, made: list[NewNode]) -> gs.Tensor:
    """Return a mask that hides the keys past its end."""
    work = found.work
    int64 = onnx.TensorProto.INT64
    have, want, missing, pads = (
        work.fresh(tensor, name, int64) for name in ("size", "keys", "missing", "pads")
    )
    others = work.constant(tensor, "others", np.zeros(2 * rank - 1, np.int64))
    kind = onnx.helper.tensor_dtype_to_np_dtype(work.dtype(tensor) or 1)
    minus_inf = work.constant(tensor, "hidden", np.array(-np.inf, kind))
    padded = work.fresh(tensor, "of_all_keys")
    made.append(NewNode("Shape", (tensor,), (have,), {"start": -1}, ""))
    made.append(NewNode("Shape", (found["k"],), (want,), {"start": 2, "end": 3}, ""))
    made.append(NewNode("Sub", (want, have), (missing,), {}, ""))
    made.append(NewNode("Concat", (others, missing), (pads,), {"axis": 0}, ""))
    made.append(NewNode("Pad", (tensor, pads, minus_inf), (padded,), {}, ""))
    return padded


FUSION = Fusion("FlashAttention", ("Attention",), y, _build)
