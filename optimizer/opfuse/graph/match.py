"""What one applied fusion leaves behind, for the proof and for the report."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim


@dataclass(frozen=True)
class TensorSpec:
    """A free tensor of a subgraph.

    ``dtype`` is an ``onnx.TensorProto`` element type; ``shape`` holds integers and symbolic
    dimensions, or is None where the rank is unknown. ``value`` is the content of a tensor of sizes,
    flat, where the shape analysis knows it.
    """

    name: str
    dtype: int
    shape: tuple[Dim, ...] | None
    value: tuple[Dim, ...] | None = None


@dataclass(frozen=True)
class Subgraph:
    """Nodes in topological order with the tensors that enter and leave them.

    ``constants`` are the weights and other initializers that the nodes read; their values may
    still lie in the model's external data file. ``functions`` define the fused ops among the nodes.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: tuple[gs.Constant, ...]
    functions: tuple[onnx.FunctionProto, ...] = ()


@dataclass(frozen=True)
class Match:
    """One place where a fusion was applied.

    ``kind`` is the report's key ("FlashAttention", "qkv_merge"), ``node`` the name of the node
    that stands there now, ``anchor`` the name that the user's model has for it. ``before`` and
    ``after`` take the same inputs to the same outputs. ``signature`` is equal for two matches
    that are the same computation on the same shapes, whatever their weights; they share
    ``before`` and ``after``, which have the names of the first. ``reads`` and ``writes`` are the
    names of the tensors around this one.
    """

    kind: str
    node: str
    anchor: str
    before: Subgraph
    after: Subgraph
    signature: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NearMiss:
    """A candidate that was left alone: ``node`` is the one that blocked it, ``reason`` says why.

    ``advice`` says what to do about it. ``blocker`` is the name of that node's first output,
    ``fitting`` are those of the nodes that did fit.
    """

    kind: str
    anchor: str
    node: str
    reason: str
    advice: str = ""
    blocker: str = ""
    fitting: tuple[str, ...] = ()
