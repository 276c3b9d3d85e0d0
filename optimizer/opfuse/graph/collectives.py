"""The operators of domain ``opfuse`` that speak to other GPUs, and which rank of several a file is.

``AllReduce(x)`` is the sum of all ranks' ``x``, ``AllGather(x)`` all of them along ``axis``.
Both carry ``group_size``, the number of ranks. No rank can compute them alone, so they have no
definition: `numerics/ranks.py` runs all ranks in step. ``AllReduceAddNorm`` has one, in which an
``AllReduce`` stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from opfuse.errors import InputError
from opfuse.graph.protos import all_nodes

DOMAIN = "opfuse"
ALL_REDUCE, ALL_GATHER, WITH_NORM = "AllReduce", "AllGather", "AllReduceAddNorm"
COLLECTIVES = (ALL_REDUCE, ALL_GATHER)
SPEAKING = (*COLLECTIVES, WITH_NORM)
MOST_BY_PLUGIN = 8  # ranks, of the plugins' kind; TensorRT's own collectives are NCCL's
_KEYS = ("opfuse.rank", "opfuse.ranks", "opfuse.plan")


@dataclass(frozen=True)
class Rank:
    """Which part of a sharded model a file is.

    Attributes:
        rank: Its number, from 0.
        size: How many ranks there are.
        plan: SHA-256 of what was sharded and how: ranks of one plan belong together.
    """

    rank: int
    size: int
    plan: str


def rank_of(model: ModelProto) -> Rank | None:
    """Which rank ``model`` is; None for one that needs no others.

    Raises:
        InputError: It has collectives, and does not say which rank of how many it is.
    """
    stated = {entry.key: entry.value for entry in model.metadata_props}
    sizes = {_size(node) for node in collectives(model)}
    if not sizes:
        return None
    values = [stated.get(key, "") for key in _KEYS]
    if not (values[0].isdecimal() and values[1].isdecimal() and values[2]):
        raise InputError(
            f"the model has collectives of {_listed(sizes)} ranks and does not say which it is",
            "cut the model again with opfuse shard",
        )
    found = Rank(int(values[0]), int(values[1]), values[2])
    if sizes != {found.size} or not 0 <= found.rank < found.size:
        raise InputError(
            f"the model is rank {found.rank} of {found.size}, its collectives are of "
            f"{_listed(sizes)}",
            "cut the model again with opfuse shard",
        )
    return found


def state(model: ModelProto, rank: Rank) -> None:
    """Write into ``model`` which rank it is."""
    kept = [entry for entry in model.metadata_props if entry.key not in _KEYS]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    values = (str(rank.rank), str(rank.size), rank.plan)
    helper.set_model_props(
        model,
        {e.key: e.value for e in kept} | dict(zip(_KEYS, values, strict=True)),
    )


def collectives(model: ModelProto) -> Iterator[NodeProto]:
    """Every node that needs what other ranks have; of functions only the calls count."""
    for node in all_nodes(model.graph.node):
        if is_ours(node.domain, node.op_type):
            yield node


def refuse_ranks(model: ModelProto) -> None:
    """Refuses the file of one rank, where a model is needed that can be run alone.

    Raises:
        InputError: A node needs what other ranks have.
    """
    for node in collectives(model):
        raise InputError(
            f"the model is one of {_size(node)} ranks that opfuse shard wrote, and its "
            f"{node.op_type} {node.name!r} needs the others",
            "give the model that was sharded",
        )


def group_size(model: ModelProto) -> int:
    """How many ranks the collectives of ``model`` are of; 0 where it has none."""
    return max(map(_size, collectives(model)), default=0)


def is_ours(domain: str, op: str) -> bool:
    """Whether an operator is one of those that speak to other ranks."""
    return domain == DOMAIN and op in SPEAKING


def _size(node: NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group_size"), 0)


def _listed(sizes: set[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))
