"""PackedAttention: attention of what one projection gives, from memory as it lies there.

qkv is [batch, seq, (heads + 2 kv_heads) * size]; y is [batch, seq, heads, size]. The Split and the
Transposes of FlashAttention's operands, each of which would copy its tensor, go. It takes fused
nodes, where the plugin library has the op: in a body these copies are there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from opfuse.fusions.attention_body import ATTRIBUTES, attention, names, unify_masks
from opfuse.fusions.guards import text
from opfuse.graph.definition import Definition, Uses
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts
from opfuse.graph.fusion import Miss, NewNode, Work

_SWAP = [0, 2, 1, 3]
_MASK = 1  # the input's index


class _PackedAttention:
    """Follows q, k, and v of fused attentions to the Split that they come from."""

    kind = "PackedAttention"

    def run(self, work: Work) -> None:
        """Take together each attention and what takes its operands apart."""
        for node in work.nodes(("FlashAttention",), "opfuse"):
            parts = [_part(tensor) for tensor in node.inputs[:3]]
            (split, *others) = (part[-1] if part else None for part in parts)
            if split is None or any(other is not split for other in others):
                continue
            try:
                self._apply(work, node, split, parts)
            except Miss as miss:
                work.miss(self.kind, node, miss, [split])

    def _apply(
        self, work: Work, node: gs.Node, split: gs.Node, parts: Sequence[Sequence[gs.Node]]
    ) -> None:
        source = split.inputs[0]
        _check(work, node, split, parts)
        (heads,) = node.outputs
        behind = heads.outputs[0] if len(heads.outputs) == 1 else None
        shared = list({id(part): part for chain in parts for part in chain}.values())
        taken, made = [node, *shared], []
        if behind is not None and _swaps(behind) and not work.is_output(heads):
            taken.append(behind)
            result = behind.outputs[0]
        else:
            result = work.fresh(heads, "positions_first")
            made.append(NewNode("Transpose", (result,), (heads,), {"perm": _SWAP}, ""))
        attrs = {**node.attrs}
        attrs.pop("plugin_namespace", None)
        del attrs["layout"]
        made.insert(0, NewNode(self.kind, (source, *node.inputs[3:]), (result,), attrs))
        work.replace(self.kind, taken[-1] if not made[1:] else node, taken, made, shared)


def _part(tensor: gs.Tensor) -> list[gs.Node]:
    """Return the Transpose, Reshape, and Split that make ``tensor``, or nothing."""
    found = []
    for op in ("Transpose", "Reshape", "Split"):
        node = producer(tensor)
        if node is None or node.op != op or node.domain:
            return []
        found.append(node)
        tensor = node.inputs[0]
    return found if _swaps(found[0]) else []


def _swaps(node: gs.Node) -> bool:
    return node.op == "Transpose" and list(node.attrs.get("perm", ())) == _SWAP


def _check(work: Work, node: gs.Node, split: gs.Node, parts: Sequence[Sequence[gs.Node]]) -> None:
    """Refuse parts that are not all heads of q, of k, and of v, one behind the other."""
    shape = work.shape(split.inputs[0])
    if node.attrs["layout"] != "BHSD" or shape is None or len(shape) != 3:
        raise Miss(f"q, k, and v are parts of {text(shape)}, want (batch, seq, features)", split)
    if int(split.attrs.get("axis", 0)) not in (2, -1) or len(split.outputs) != 3:
        raise Miss("takes apart another axis, or more than q, k, and v", split)
    counts = (node.attrs["num_heads"], node.attrs["kv_num_heads"], node.attrs["kv_num_heads"])
    sizes = set()
    for (_, reshape, _), output, count in zip(parts, split.outputs, counts, strict=True):
        heads = work.shape(reshape.outputs[0])
        if reshape.inputs[0] is not output:
            raise Miss("q, k, and v do not follow each other", reshape)
        if heads is None or len(heads) != 4 or (*heads[:2], heads[2]) != (*shape[:2], count):
            raise Miss(f"gives {text(heads)}, want (batch, seq, {count}, size)", reshape)
        sizes.add(heads[3])
    if len(sizes) != 1:
        raise Miss("q, k, and v have heads of several sizes", split)


_UNPACKED = """
    single = Constant<value_ints: ints = [1]>()
    same = Constant<value_ints: ints = [0, 0]>()
    rest = Constant<value_ints: ints = [-1]>()
    q_count0 = Constant<value_int: int = @num_heads>()
    kv_count0 = Constant<value_int: int = @kv_num_heads>()
    q_count = Reshape(q_count0, single)
    kv_count = Reshape(kv_count0, single)
    kv_counts = Add(kv_count, kv_count)
    all_heads = Add(q_count, kv_counts)
    counts = Concat<axis: int = 0>(q_count, kv_count, kv_count)
    by_heads = Concat<axis: int = 0>(same, all_heads, rest)
    heads_last = Reshape(qkv, by_heads)
    q_rows, k_rows, v_rows = Split<axis: int = 2>(heads_last, counts)
    q = Transpose<perm: ints = [0, 2, 1, 3]>(q_rows)
    k = Transpose<perm: ints = [0, 2, 1, 3]>(k_rows)
    v = Transpose<perm: ints = [0, 2, 1, 3]>(v_rows)
    """


def _body(uses: Uses) -> str:
    turn = "\ny = Transpose<perm: ints = [0, 2, 1, 3]>(y_heads)"
    inner = attention(uses, ("q", "k", "v"), "y_heads", _MASK)
    return _UNPACKED + inner + turn


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts) -> None:
    unify_masks(graph, nodes, facts, _MASK)


DEFINITION = Definition(
    "PackedAttention",
    lambda uses: names(uses, ("qkv",)),
    ("y",),
    ATTRIBUTES,
    _body,
    _unify,
    in_fp32=("mask", "slopes"),
)

FUSION = _PackedAttention()
