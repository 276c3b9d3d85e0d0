"""Fused graph -> the graph of one rank of several, and the plan that tells what was split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs
from onnx import ModelProto

from opfuse.errors import InputError
from opfuse.graph.collectives import ALL_REDUCE, SPEAKING
from opfuse.graph.facts import Facts
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.protos import byte_size, is_external
from opfuse.sharding import merged, vocabulary
from opfuse.sharding.choose import Choice, choose, is_attention, is_product
from opfuse.sharding.cut import Cutter
from opfuse.sharding.groups import ungroup
from opfuse.sharding.layout import Shard, Stays, static
from opfuse.sharding.prepare import join_slices, write_out_gemms
from opfuse.sharding.result import Attention, Left, Plan, Port, Product
from opfuse.sharding.rules.base import AS_IT_IS
from opfuse.sharding.spread import Spreader
from opfuse.stages.report import plain

if TYPE_CHECKING:
    from opfuse.stages.fuse import Fused

_SHOWN = 3  # reasons in a message
_LARGE = 0.01  # of all weights
# What weights are stored as: onnx.TensorProto's UINT8, INT8, and all of 8 and 4 bits.
_STORED = (*vocabulary.FLOATS, 2, 3, *range(17, 24))
_EXPERTS = "its matrices are looked up, and what is found is multiplied with"
_MULTIPLY = frozenset(
    {"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"}
    | {"MatMulInteger", "QLinearMatMul", "QLinearConv", "MatMulNBits", "GatedGemm"}
)


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
    write_out_gemms(graph, facts)
    join_slices(graph, facts)
    merged.part(graph, facts)
    ungroup(graph, facts)
    heads, left = vocabulary.heads(graph, facts, ranks) if vocab else ({}, {})
    choice = choose(Spreader(graph, facts, ranks), heads)
    names = _Names(fused)
    products, attentions, whole = _told(fused, choice, names)
    whole += _others(fused, choice, names)
    whole += [Left(name, "MatMul", reason) for name, reason in left.items()]
    if vocab and not heads and not left:
        whole.append(Left("the head", "MatMul", "no product with a weight makes an output alone"))
    inputs, outputs = (_ports(t, choice, heads) for t in (graph.inputs, graph.outputs))
    cutter = Cutter(graph, facts, ranks, base_dir)
    if vocab:
        _share_words(cutter, names, products, whole)
    if not products:
        raise InputError(
            f"{model}: nothing in it can be split among {ranks} ranks{_reasons(whole)}",
            "choose a number of ranks that divides its heads and features",
        )
    cutter.apply(choice.spread, choice.rows)
    vocabulary.gather(cutter, heads, choice.spread.tensors)
    cutter.finish()
    told = tuple(products), tuple(attentions), tuple(whole)
    return Sharded(cutter, Plan(str(model), ranks, *told, inputs, outputs, _collectives(graph)))


def with_sums(sharded: Sharded, fused: Fused, digest: str) -> Sharded:
    """The same with what became of the sums over the ranks, and what it is known by.

    Args:
        sharded: From `shard`.
        fused: Its graph, with the sums that norms were taken into.
        digest: SHA-256 of the model that was sharded.
    """
    plan = replace(
        sharded.plan,
        collectives=_collectives(fused.graph),
        apart=_apart(fused, _Names(fused)),
        model_sha256=digest,
    )
    facts = [getattr(plan, item.name) for item in fields(plan) if item.name != "model"]
    text = json.dumps(plain(facts), sort_keys=True)
    return replace(sharded, plan=replace(plan, sha256=hashlib.sha256(text.encode()).hexdigest()))


def _share_words(cutter: Cutter, names: _Names, products: list[Product], whole: list[Left]) -> None:
    """Split the embedding, and tell what became of it."""
    table = vocabulary.embedding(cutter.graph, cutter.facts)
    if table is None:
        whole.append(Left("the embedding", "Gather", "no table is looked up by an input"))
        return
    rows, width = map(int, table.inputs[0].shape)
    name = names.of(table)
    try:
        vocabulary.split_embedding(cutter, table)
    except Stays as stays:
        whole.append(Left(name, table.op, str(stays)))
    else:
        part = (rows // cutter.ranks, width)
        products.append(Product(name, "vocabulary", (rows, width), part))


def _apart(fused: Fused, names: _Names) -> tuple[Left, ...]:
    """The sums over the ranks that no norm was taken into, and why."""
    reasons = {name: miss.reason for miss in fused.misses for name in miss.fitting}
    return tuple(
        Left(
            names.of(node),
            node.op,
            reasons.get(node.outputs[0].name, "no fused norm stands right behind it"),
        )
        for node in fused.graph.nodes
        if node.op == ALL_REDUCE and node.domain == OPFUSE
    )


def _collectives(graph: gs.Graph) -> dict[str, int]:
    found = Counter(node.op for node in graph.nodes if node.domain == OPFUSE)
    return {op: found[op] for op in SPEAKING}


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
    fused: Fused, choice: Choice, names: _Names
) -> tuple[list[Product], list[Attention], list[Left]]:
    products: list[Product] = []
    attentions: list[Attention] = []
    left: list[Left] = []
    for node in fused.graph.nodes:
        how = choice.spread.nodes.get(id(node))
        if how is not None and is_attention(node):
            attentions.append(_attention(node, how.inputs[0], how.attrs, names))
        elif how is not None and is_product(node) and how.inputs[1] is not None:
            kind = "row" if id(node) in choice.rows else "column"
            shape = fused.facts.shape(node.inputs[1]) or ()
            size = tuple(static(dim, "a weight") for dim in shape)
            products.append(Product(names.of(node), kind, size, _part(size, how.inputs[1])))
        elif id(node) in choice.left:
            left.append(Left(names.of(node), node.op, choice.left[id(node)]))
    return products, attentions, left


def _others(fused: Fused, choice: Choice, names: _Names) -> list[Left]:
    """Large weights that no product with them reads.

    Experts that are looked up, convolutions, and what is computed first, as if it was quantised.
    """
    graph, facts = fused.graph, fused.facts
    read: dict[int, tuple[int, gs.Node]] = {}
    total = 0
    for node in graph.nodes:
        for tensor in node.inputs:
            shape = facts.shape(tensor) if isinstance(tensor, gs.Constant) else None
            if id(tensor) in read or not shape or facts.dtype(tensor) not in _STORED:
                continue
            size = prod(static(dim, "a weight") for dim in shape)
            read[id(tensor)] = size, node
            total += size
    told = choice.spread.nodes.keys() | choice.left.keys()
    return [
        Left(names.of(node), node.op, reason)
        for size, node in read.values()
        if size >= _LARGE * total and id(node) not in told and (reason := _other(node, facts))
    ]


def _other(node: gs.Node, facts: Facts) -> str:
    """Why a node that reads a large weight has all of it; empty where it multiplies with none."""
    if node.op == "Gather" and len(facts.shape(node.inputs[0]) or ()) > 2:
        return _EXPERTS
    if node.op in _MULTIPLY:
        return f"no rule splits what a {node.op} multiplies with"
    made = node.op not in AS_IT_IS and _multiplied(node)
    return f"no rule splits a weight that a {node.op} makes" if made else ""


def _multiplied(node: gs.Node) -> bool:
    """Whether a node makes a weight, of weights alone, that something multiplies with."""
    pending, made = [node], set[int]()
    while pending:
        node = pending.pop()
        if not all(
            isinstance(t, gs.Constant) or t.is_empty() or id(t) in made for t in node.inputs
        ):
            continue
        made |= {id(tensor) for tensor in node.outputs}
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        if any(reader.op in _MULTIPLY for reader in readers):
            return True
        pending.extend(readers)
    return False


def _part(size: tuple[int, ...], shard: Shard) -> tuple[int, ...]:
    return (*size[: shard.axis], shard.local, *size[shard.axis + 1 :])


def _attention(
    node: gs.Node, queries: Shard | None, attrs: Mapping[str, object], names: _Names
) -> Attention:
    whole = int(node.attrs["kv_num_heads"])
    heads, few = (int(str(attrs[name])) for name in ("num_heads", "kv_num_heads"))
    ranks = 0 if queries is None else len(queries.parts)
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
    first: dict[tuple[str, str], str] = {}
    for item in left:
        first.setdefault((item.op, item.reason), f"\n  {item.node} ({item.op}): {item.reason}")
    return "".join([*first.values()][:_SHOWN])
