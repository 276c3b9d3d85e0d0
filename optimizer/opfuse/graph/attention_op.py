"""The standard Attention operator with its heads apart and its cache joined before it.

q, k, v of rank 3 hold their heads side by side, and a cache is joined to k and v inside; written
before the operator both are what other spellings have.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from opfuse.graph.expansion import Expansion, Unclear, is_read
from opfuse.graph.microsoft_attention import from_heads, to_heads
from opfuse.graph.rewriter import Rewriter

LENGTHS = 6  # the input's index: how many keys each batch has
_INPUTS, _OUTPUTS = 7, 3  # further ones, and what they mean, stay with the operator
WINDOW = ("left_window_size", "right_window_size")  # ai.onnx 25: -1 where there is none
_OWN = ("q_num_heads", "kv_num_heads", "qk_matmul_output_mode")


def apart(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Write an Attention of rank 3, or with a cache, as one of rank 4 without."""
    e = Expansion(rewriter, node)
    past = (e.get(4), e.get(5))
    ranks = [len(rewriter.shape(tensor) or ()) for tensor in node.inputs[:3]]
    plain = ranks == [4, 4, 4] and past[0] is None and len(node.outputs) == 1
    if plain or ranks not in ([3, 3, 3], [4, 4, 4]) or not _is_known(rewriter, node, past):
        return None
    try:
        y, k, v = _rank_four(e, ranks[0], past)
    except Unclear:
        return None
    rewriter.become_identities(node, y, k, v)
    return y


def _is_known(
    rewriter: Rewriter, node: gs.Node, past: tuple[gs.Tensor | None, gs.Tensor | None]
) -> bool:
    """Tell whether the node does nothing else; with a cache, opsets differ in what is causal.

    Where a query stands is told from the cache, so a window is as good as causal; and lengths are
    those of keys that hold the cache already.
    """
    more = any(not tensor.is_empty() for tensor in node.inputs[_INPUTS:])
    scores = any(is_read(rewriter, tensor) for tensor in node.outputs[_OUTPUTS:])
    both = (past[0] is None) == (past[1] is None)
    sides = [int(node.attrs.get(name, -1)) for name in WINDOW]
    placed = bool(node.attrs.get("is_causal", 0)) or sides != [-1, -1] or _has_lengths(node)
    return both and not more and not scores and not (placed and past[0] is not None)


def _has_lengths(node: gs.Node) -> bool:
    return len(node.inputs) > LENGTHS and not node.inputs[LENGTHS].is_empty()


def _rank_four(
    e: Expansion, rank: int, past: tuple[gs.Tensor | None, gs.Tensor | None]
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    q, k, v = e[0], e[1], e[2]
    if rank == 3:
        q = to_heads(e, q, e.integer("q_num_heads"))
        k, v = (to_heads(e, tensor, e.integer("kv_num_heads")) for tensor in (k, v))
    if past[0] is not None and past[1] is not None:
        k, v = e("Concat", past[0], k, axis=2), e("Concat", past[1], v, axis=2)
    given = [e.get(3), None, None, e.get(LENGTHS)]
    while given and given[-1] is None:
        given.pop()
    more = [gs.Variable.empty() if tensor is None else tensor for tensor in given]
    attrs = {name: value for name, value in e.node.attrs.items() if name not in _OWN}
    y = e("Attention", q, k, v, *more, **attrs)
    return (from_heads(e, y) if rank == 3 else y), k, v
