"""QkNormRope: packed q, k, v -> heads, with the bias, the norms of q and k, and their rotation.

qkv is [batch, seq, (heads + 2 kv_heads) * size]; q, k, and v are [batch, heads, seq, size]. It
takes together what the other rooms have found, so it counts no pattern of the model again, and
comes last, where the plugin library has it: there it is one pass over memory in place of up to
nine, while its body alone would only hide nodes from whatever else reads the fused graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from opfuse.fusions.guards import text
from opfuse.fusions.rope import rotation
from opfuse.graph.definition import Definition, Uses, mean_last
from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Miss, NewNode, Work

_HEADS_FIRST = [0, 2, 1, 3]
_ALIKE = ("interleaved", "rotary_dim", "head_size")  # what q's rotation shares with k's
# What the one definition in a model is written for.
_CLAIMED = ("interleaved", "head_size", "num_heads", "kv_num_heads", "norm", "bias")


@dataclass(frozen=True)
class _Heads:
    """The nodes that make ``out`` [batch, count, seq, size] from one part of qkv."""

    nodes: tuple[gs.Node, ...]
    out: gs.Tensor
    count: int
    size: int

    def find(self, op: str) -> gs.Node | None:
        """Return the node of this operator, if there is one."""
        return next((node for node in self.nodes if node.op == op), None)

    def attribute(self, op: str, name: str) -> object:
        """Return an attribute of the node of this operator, None where either is absent."""
        node = self.find(op)
        return None if node is None else node.attrs.get(name)


@dataclass(frozen=True)
class _Parts:
    """What is taken apart along its last axis, by a Split or by Slices, into three."""

    source: gs.Tensor
    nodes: tuple[gs.Node, ...]
    outputs: tuple[gs.Tensor, ...]


class _QkNormRope:
    """Follows the three parts of a tensor to what is made of each."""

    kind = "QkNormRope"

    def run(self, work: Work) -> None:
        """Take together what stands behind each packed q, k, and v."""
        for parts in [*_splits(work), *_slices(work)]:
            shape = work.shape(parts.source)
            ropes = [node for node in _behind(work, parts) if node.op == "Rope"]
            if shape is None or len(shape) != 3 or not ropes:
                continue
            try:
                self._apply(work, parts, shape)
            except Miss as miss:
                work.miss(self.kind, parts.nodes[0], miss, [*parts.nodes, *ropes])

    def _apply(self, work: Work, parts: _Parts, shape: tuple[Dim, ...]) -> None:
        anchor = parts.nodes[0]
        q, k, v = (_follow(work, tensor, shape) for tensor in parts.outputs)
        _check(anchor, q, k, v)
        qkv, bias, taken = _packed(work, parts)
        made, (cos, sin) = _caches(work, q, k)
        norms = [heads.find("RmsNorm") for heads in (q, k)]
        attrs = {
            **{name: q.attribute("Rope", name) or 0 for name in _ALIKE},
            "num_heads": q.count,
            "kv_num_heads": k.count,
            "norm": int(norms[0] is not None),
            "bias": int(bias is not None),
            "epsilon": q.attribute("RmsNorm", "epsilon") or 0.0,
        }
        for name in _CLAIMED:
            work.claim(self.kind, name, str(attrs[name]), anchor)
        gammas = [norm.inputs[1] for norm in norms if norm is not None]
        inputs = (qkv, cos, sin, *gammas, *([] if bias is None else [bias]))
        made.append(NewNode(self.kind, inputs, (q.out, k.out, v.out), attrs))
        nodes = [*taken, *parts.nodes, *q.nodes, *k.nodes, *v.nodes]
        work.replace(self.kind, anchor, nodes, made)


def _splits(work: Work) -> Iterator[_Parts]:
    for node in work.nodes(("Split",)):
        if len(node.outputs) == 3 and int(node.attrs.get("axis", 0)) in (2, -1):
            yield _Parts(node.inputs[0], (node,), tuple(node.outputs))


def _slices(work: Work) -> Iterator[_Parts]:
    """Yield what three Slices take all of, one behind the other."""
    readers: dict[int, list[gs.Node]] = {}
    for node in work.nodes(("Slice",)):
        readers.setdefault(id(node.inputs[0]), []).append(node)
    for nodes in readers.values():
        source = nodes[0].inputs[0]
        shape = work.shape(source) or ()
        found = {_bounds(work, node, shape): node for node in nodes if len(shape) == 3}
        ends = [(start, end) for start, end in sorted(found) if start < end]
        if len(nodes) == len(ends) == 3 and _covers(ends, shape[2]):
            inside = tuple(found[bounds] for bounds in ends)
            yield _Parts(source, inside, tuple(node.outputs[0] for node in inside))


def _bounds(work: Work, node: gs.Node, shape: tuple[Dim, ...]) -> tuple[int, int]:
    """Return where along the last axis ``node`` starts and ends; (0, 0) where it does otherwise."""
    values = [work.facts.value(tensor) for tensor in node.inputs[1:]]
    numbers = [v.ravel()[0] for v in values if v is not None and v.size == 1]
    size = shape[2]
    if len(numbers) != len(values) or not all(isinstance(n, int) for n in (*numbers, size)):
        return 0, 0
    start, end, axis, *step = numbers
    if axis not in (2, -1) or step not in ([], [1]):
        return 0, 0
    start, end = (max(0, min(size, at + size if at < 0 else at)) for at in (start, end))
    return start, end


def _covers(ends: list[tuple[int, int]], size: Dim) -> bool:
    starts, stops = zip(*ends, strict=True)
    return (*starts, size) == (0, *stops)


def _behind(work: Work, parts: _Parts) -> Iterator[gs.Node]:
    """Yield the nodes that alone read what is made of each part, a few steps far."""
    for tensor in parts.outputs:
        current: gs.Tensor | None = tensor
        for _ in range(4):
            node = None if current is None else _only_reader(work, current)
            if node is None:
                break
            yield node
            current = node.outputs[0]


def _only_reader(work: Work, tensor: gs.Tensor) -> gs.Node | None:
    """Return the one node that reads ``tensor``, as its first input, where nothing else does."""
    alone = len(tensor.outputs) == 1 and not work.is_output(tensor)
    node: gs.Node | None = tensor.outputs[0] if alone else None
    return node if node is not None and node.inputs[0] is tensor else None


def _follow(work: Work, flat: gs.Tensor, packed: tuple[Dim, ...]) -> _Heads:
    """Follow one part to where it is [batch, heads, seq, size], and normed and turned if ever.

    Raises:
        Miss: It is not made so.
    """
    batch, seq = packed[:2]
    node = _only_reader(work, flat)
    shape = None if node is None else work.shape(node.outputs[0])
    if node is None or node.op not in ("Reshape", "Unsqueeze") or shape is None or len(shape) != 4:
        raise Miss(f"{flat.name} is not only reshaped to heads", node or producer(flat))
    one_head = shape[:3] == (batch, 1, seq)  # needs no Transpose
    count, size = (1 if one_head else shape[2]), shape[3]
    if not isinstance(count, int) or not isinstance(size, int):
        raise Miss(f"heads of {text(shape)} are not of fixed number and size", node)
    if not one_head and shape[:2] != (batch, seq):
        raise Miss(f"{node.outputs[0].name} is {text(shape)}, want (batch, seq, heads, size)", node)
    nodes, left = [node], ["Transpose", "RmsNorm", "Rope"]
    if one_head:
        left.remove("Transpose")
    while (node := _only_reader(work, nodes[-1].outputs[0])) is not None and node.op in left:
        if node.op == "Transpose" and list(node.attrs.get("perm", ())) != _HEADS_FIRST:
            break
        # A norm behind the rotation is another thing, so what precedes it is the end.
        left = [op for op in left if op != node.op and (node.op, op) != ("Rope", "RmsNorm")]
        nodes.append(node)
    out = nodes[-1].outputs[0]
    # As many heads as positions have one shape in either order.
    if "Transpose" in left or work.shape(out) != (batch, count, seq, size):
        have = text(work.shape(out))
        raise Miss(f"{out.name} is {have}, want (batch, heads, seq, size)", nodes[-1])
    return _Heads(tuple(nodes), out, count, size)


def _check(anchor: gs.Node, q: _Heads, k: _Heads, v: _Heads) -> None:
    """Refuse parts that one node does not make: q and k alike, v neither normed nor turned."""
    if k.count != v.count or not q.size == k.size == v.size:
        counts = ", ".join(f"{heads.count} x {heads.size}" for heads in (q, k, v))
        raise Miss(f"its heads are {counts}, want k and v alike, and all of one size", anchor)
    for op in ("Rope", "RmsNorm"):
        if v.find(op) is not None:
            raise Miss(f"{op} of v", v.find(op))
        without = [heads for heads in (q, k) if heads.find(op) is None]
        if len(without) == 1:
            (stopped,) = without
            raise Miss(f"{op} of only one of q and k", next(iter(stopped.out.outputs), anchor))
    for name in _ALIKE:
        if q.attribute("Rope", name) != k.attribute("Rope", name):
            raise Miss(f"q and k turn with another {name}", k.find("Rope"))
    if q.attribute("RmsNorm", "epsilon") != k.attribute("RmsNorm", "epsilon"):
        raise Miss("the norms of q and k have another epsilon each", k.find("RmsNorm"))


def _packed(work: Work, parts: _Parts) -> tuple[gs.Tensor, gs.Constant | None, list[gs.Node]]:
    """Return what is taken apart, a bias that was added to it, and the Add."""
    tensor = parts.source
    node, shape = producer(tensor), work.shape(tensor)
    others = len(tensor.outputs) != len(parts.nodes) or work.is_output(tensor)
    if node is None or node.op != "Add" or others:
        return tensor, None, []
    for x, bias in (node.inputs, node.inputs[::-1]):
        vector = isinstance(bias, gs.Constant) and shape and tuple(bias.shape) == shape[-1:]
        if vector and work.shape(x) == shape:
            return x, bias, [node]
    return tensor, None, []


def _caches(work: Work, q: _Heads, k: _Heads) -> tuple[list[NewNode], list[gs.Tensor]]:
    """Return cos and sin as they broadcast to [batch, 1, seq, rotary_dim], and what makes them so.

    Raises:
        Miss: q and k turn by others, or each head does.
    """
    made: list[NewNode] = []
    caches: list[gs.Tensor] = []
    first, second = q.find("Rope"), k.find("Rope")
    if first is None or second is None:
        raise Miss("nothing turns q and k", q.nodes[0])
    behind = [_is_behind_transpose(heads) for heads in (q, k)]
    for index in (1, 2):
        tensor = first.inputs[index]
        if second.inputs[index] is not tensor or behind[0] != behind[1]:
            raise Miss("q and k turn by other angles", second)
        shape = work.shape(tensor) or ()
        rank, axis = len(shape), -3 if behind[0] else -2
        if rank >= -axis and shape[axis] != 1:
            raise Miss(f"{tensor.name} is {text(shape)}, an angle a head", first)
        if not behind[0] and rank > 2:  # [.., seq, 1, rotary_dim]
            perm = [*range(rank - 3), rank - 2, rank - 3, rank - 1]
            turned = work.fresh(tensor, "one_head")
            made.append(NewNode("Transpose", (tensor,), (turned,), {"perm": perm}, ""))
            tensor = turned
        caches.append(tensor)
    return made, caches


def _is_behind_transpose(heads: _Heads) -> bool:
    """Tell whether the rotation has the heads before the positions."""
    ops = [node.op for node in heads.nodes]
    return "Transpose" not in ops or ops.index("Transpose") < ops.index("Rope")


def _body(uses: Uses) -> str:
    (heads,), (few,) = uses.values("num_heads"), uses.values("kv_num_heads")
    total = int(str(heads)) + 2 * int(str(few))
    bias = "bias_wide = Cast<to: int = 1>(bias)\npacked = Add(wide, bias_wide)"
    return f"""
        wide = Cast<to: int = 1>(qkv)
        {bias if uses.any("bias") else "packed = Identity(wide)"}
        shape = Constant<value_ints: ints = [0, 0, {total}, -1]>()
        rows = Reshape(packed, shape)
        all_heads = Transpose<perm: ints = [0, 2, 1, 3]>(rows)
        sizes = Constant<value_ints: ints = [{heads}, {few}, {few}]>()
        q_heads, k_heads, v_heads = Split<axis: int = 1>(all_heads, sizes)
        cos_wide = Cast<to: int = 1>(cos)
        sin_wide = Cast<to: int = 1>(sin)
        {"epsilon = Constant<value_float: float = @epsilon>()" if uses.any("norm") else ""}
        {_turned(uses, "q")}
        {_turned(uses, "k")}
        q = CastLike(q_turned, qkv)
        k = CastLike(k_turned, qkv)
        v = CastLike(v_heads, qkv)"""


def _turned(uses: Uses, name: str) -> str:
    """Return the statements of ``name``_turned: its heads, normed if they are, and turned."""
    source = f"{name}_heads"
    norm = ""
    if uses.any("norm"):
        source = f"{name}_normed"
        norm = f"""
        {name}_square = Mul({name}_heads, {name}_heads)
        {mean_last(uses.opset, f"{name}_mean", f"{name}_square")}
        {name}_variance = Add({name}_mean, epsilon)
        {name}_root = Sqrt({name}_variance)
        {name}_unit = Div({name}_heads, {name}_root)
        {name}_gamma_wide = Cast<to: int = 1>({name}_gamma)
        {source} = Mul({name}_unit, {name}_gamma_wide)"""
    return norm + rotation(uses, f"{name}_turned", source, "cos_wide", "sin_wide")


def _inputs(uses: Uses) -> tuple[str, ...]:
    """The names of the inputs: those of the norms and of the bias are there or not."""
    gammas = ("q_gamma", "k_gamma") if uses.any("norm") else ()
    return ("qkv", "cos", "sin", *gammas, *(("bias",) if uses.any("bias") else ()))


DEFINITION = Definition(
    "QkNormRope",
    _inputs,
    ("q", "k", "v"),
    (*_ALIKE, "num_heads", "kv_num_heads", "norm", "bias", "epsilon"),
    _body,
    in_fp32=("cos", "sin", "q_gamma", "k_gamma", "bias"),
)
FUSION = _QkNormRope()
