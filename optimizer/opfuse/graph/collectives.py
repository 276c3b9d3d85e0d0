"""The two operators of domain ``opfuse`` that speak to other GPUs, and where they are refused.

``AllReduce(x)`` is the sum of all ranks' ``x``, ``AllGather(x)`` all of them along ``axis``.
Both carry ``group_size``, the number of ranks. No rank can compute them alone, so they have no
definition: `numerics/ranks.py` runs all ranks in step.
"""

from __future__ import annotations

from onnx import ModelProto

from opfuse.errors import InputError
from opfuse.graph.protos import all_nodes

DOMAIN = "opfuse"
ALL_REDUCE, ALL_GATHER = "AllReduce", "AllGather"
COLLECTIVES = (ALL_REDUCE, ALL_GATHER)


def refuse_ranks(model: ModelProto) -> None:
    """Refuses the file of one rank.

    Raises:
        InputError: A node needs what other ranks have.
    """
    for node in all_nodes(model.graph.node):
        if node.domain == DOMAIN and node.op_type in COLLECTIVES:
            size = next((item.i for item in node.attribute if item.name == "group_size"), 0)
            raise InputError(
                f"the model is one of {size} ranks that opfuse shard wrote, and its "
                f"{node.op_type} {node.name!r} needs the others; this release has no plugin for it",
                "give the model that was sharded",
            )
