"""Fused graph -> the graph of one rank of several, and the plan that tells what was split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs
from onnx import ModelProto

from opfuse.errors import InputError
from opfuse.graph.collectives import COLLECTIVES
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.protos import byte_size, is_external
from opfuse.sharding import vocabulary
from opfuse.sharding.choose import Choice, choose, is_attention, is_product
from opfuse.sharding.cut import Cutter
from opfuse.sharding.layout import Shard, Stays
from opfuse.sharding.result import Attention, Left, Plan, Port, Product
from opfuse.sharding.spread import Spreader

if TYPE_CHECKING:
    from opfuse.stages.fuse import Fused

_SHOWN = 3  # reasons in a message


@dataclass(frozen=True)
class Sharded:
    """A graph that is cut, and can be given the constants of each rank in turn."""

    cutter: Cutter
    plan: Plan


def shard(fused: Fused, model: Path, base_dir: Path, ranks: int, *, vocab: bool) -> Sharded:
    """Cut a fused graph for ``ranks`` ranks.

    Args:
        fused: It is changed.
        model: The user's file, for messages and the plan.
        base_dir: The folder that external weights are relative to.
        ranks: Two or more.
        vocab: Share out the embedding and the head too.

    Raises:
        InputError: There is nothing that can be split.
    """
    graph, facts = fused.graph, fused.facts
    heads, left = vocabulary.heads(graph, facts, ranks) if vocab else ({}, {})
    choice = choose(Spreader(graph, facts, ranks), heads)
    names = _Names(fused)
    told = _told(graph, choice, names, facts_of=left)
    table = vocabulary.embedding(graph, facts) if vocab else None
    products, attentions, whole = told
    inputs, outputs = (_ports(t, choice, heads) for t in (graph.inputs, graph.outputs))
    cutter = Cutter(graph, facts, ranks, base_dir)
    if table is not None:
        try:
            size = tuple(map(int, table.inputs[0].shape))
            vocabulary.split_embedding(cutter, table)
            part = (size[0] // ranks, size[1])
            products.append(Product(names.of(table), "vocabulary", size, part))
        except Stays as stays:
            whole.append(Left(names.of(table), table.op, str(stays)))
    if not products:
        raise InputError(
            f"{model}: nothing in it can be split among {ranks} ranks{_reasons(whole)}",
            "choose a number of ranks that divides its heads and features",
        )
    cutter.apply(choice.spread, choice.rows)
    vocabulary.gather(cutter, heads, choice.spread.tensors)
    cutter.finish()
    found = Counter(n.op for n in graph.nodes if n.domain == OPFUSE and n.op in COLLECTIVES)
    collectives = {op: found[op] for op in COLLECTIVES}
    plan = Plan(
        str(model),
        ranks,
        tuple(products),
        tuple(attentions),
        tuple(whole),
        inputs,
        outputs,
        collectives,
    )
    return Sharded(cutter, plan)


def weight_bytes(model: ModelProto) -> int:
    """The bytes of all weights; those that are one range of a file count once."""
    sizes: dict[object, int] = {}
    for tensor in model.graph.initializer:
        entries = sorted((entry.key, entry.value) for entry in tensor.external_data)
        key = str(entries) if is_external(tensor) and entries else tensor.name
        sizes[key] = byte_size(tensor) or 0
    return sum(sizes.values())


def with_files(plan: Plan, files: list[str], whole: int, rank: int) -> Plan:
    """The plan with what was written: the files, and the bytes of weights."""
    return replace(plan, files=tuple(files), weight_bytes={"model": whole, "rank": rank})


def parts_of(plan: Plan) -> Mapping[str, tuple[int, tuple[tuple[int, ...], ...]]]:
    """The inputs and outputs that the ranks have parts of: axis and positions, by name."""
    return {port.name: (port.axis, port.ranks) for port in (*plan.inputs, *plan.outputs)}


class _Names:
    """How the user's model calls the nodes of the fused graph."""

    def __init__(self, fused: Fused) -> None:
        self._user = fused.user

    def of(self, node: gs.Node) -> str:
        """The user's name of ``node``, or the one that it has now."""
        owner = self._user.owner(node.outputs[0].name, node.op)
        return owner.name if owner is not None else node.name or node.outputs[0].name


def _told(
    graph: gs.Graph, choice: Choice, names: _Names, *, facts_of: Mapping[str, str]
) -> tuple[list[Product], list[Attention], list[Left]]:
    products: list[Product] = []
    attentions: list[Attention] = []
    left: list[Left] = []
    for node in graph.nodes:
        how = choice.spread.nodes.get(id(node))
        if how is not None and is_attention(node):
            attentions.append(_attention(node, how.inputs[1], how.attrs, names))
        elif how is not None and is_product(node) and how.inputs[1] is not None:
            kind = "row" if id(node) in choice.rows else "column"
            size = tuple(map(int, node.inputs[1].shape))
            products.append(Product(names.of(node), kind, size, _part(size, how.inputs[1])))
        elif id(node) in choice.left:
            left.append(Left(names.of(node), node.op, choice.left[id(node)]))
    left += [Left(name, "MatMul", reason) for name, reason in facts_of.items()]
    return products, attentions, left


def _part(size: tuple[int, ...], shard: Shard) -> tuple[int, ...]:
    return (*size[: shard.axis], shard.local, *size[shard.axis + 1 :])


def _attention(
    node: gs.Node, keys: Shard | None, attrs: Mapping[str, object], names: _Names
) -> Attention:
    whole = int(node.attrs["kv_num_heads"])
    heads, few = (int(str(attrs[name])) for name in ("num_heads", "kv_num_heads"))
    ranks = 0 if keys is None else len(keys.parts)
    return Attention(names.of(node), heads, few, replicated_kv=few * ranks > whole)


def _ports(
    tensors: list[gs.Tensor], choice: Choice, gathered: Mapping[int, Shard]
) -> tuple[Port, ...]:
    return tuple(
        Port(tensor.name, shard.axis, tuple(tuple(map(int, part)) for part in shard.parts))
        for tensor in tensors
        if (shard := choice.spread.tensors.get(id(tensor))) is not None
        and id(tensor) not in gathered
    )


def _reasons(left: list[Left]) -> str:
    first = list(dict.fromkeys(f"{item.node} ({item.op}): {item.reason}" for item in left))
    return "".join(f"\n  {text}" for text in first[:_SHOWN])
