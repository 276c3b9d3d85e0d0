"""Fused nodes as the standard operators that TensorRT has layers for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from opfuse.errors import EngineError
from opfuse.graph.attention_op import LENGTHS
from opfuse.graph.collectives import ALL_GATHER, ALL_REDUCE, WITH_NORM
from opfuse.graph.dist_collective import dist_collective, sum_apart
from opfuse.graph.protos import HALVES, label, type_name

UNREAD_SUM = "sum_is_read"  # 0 of a norm whose sum nobody reads
OF_PLUGINS = ("plugin_namespace", UNREAD_SUM)  # attributes of plugins that functions do not have
_INPUTS = (("slopes", 0), ("lengths", 0))  # of FlashAttention, that attributes tell of


class Unable(Exception):
    """Why a node has no native form here."""


@dataclass(frozen=True)
class Facts:
    """What the native forms depend on; ``model`` is read while its nodes are still its own."""

    model: ModelProto
    opset: int
    types: dict[str, int]
    ranks: int = 1

    def needs_opset(self, version: int, op: str) -> None:
        """Refuse models of an older opset, which do not have ``op``."""
        if self.opset < version:
            raise Unable(f"{op} needs opset {version}, the model has {self.opset}")

    def type_of(self, tensor: str) -> int:
        """The element type of a tensor that must be known."""
        if tensor not in self.types:
            raise Unable(f"the type of {tensor} is not known")
        return self.types[tensor]

    @cached_property
    def values(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Types and shapes of all tensors, as far as onnx infers them."""
        graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        return {value.name: value.type.tensor_type for value in values}

    @cached_property
    def producers(self) -> dict[str, NodeProto]:
        """The node that writes each tensor."""
        return {name: node for node in self.model.graph.node for name in node.output}

    def shape_of(self, tensor: str) -> tuple[int | str, ...]:
        """The sizes of a tensor, numbers or names, which must all be known."""
        value = self.values.get(tensor)
        dims = None if value is None or not value.HasField("shape") else value.shape.dim
        sizes = None if dims is None else tuple(d.dim_param or d.dim_value for d in dims)
        if sizes is None or not all(sizes):
            raise Unable(f"the shape of {tensor} is not known")
        return sizes


def native(node: NodeProto, facts: Facts) -> list[NodeProto]:
    """The nodes that stand for a fused one.

    Raises:
        Unable: There are none for it.
    """
    form = _NATIVE.get(node.op_type)
    if form is None:
        raise Unable("TensorRT has no single layer for it")
    return form(node, facts)


def _collective(node: NodeProto, facts: Facts) -> list[NodeProto]:
    return dist_collective(node, facts.ranks, facts.opset)


def _all_reduce_add_norm(node: NodeProto, facts: Facts) -> list[NodeProto]:
    """The sum over the ranks, and then the norm in its own native form."""
    before, rest = sum_apart(node, facts.ranks, facts.opset)
    facts.types.setdefault(rest.input[0], facts.type_of(node.input[0]))
    form = _add_rms_norm if rest.op_type == "AddRmsNorm" else _add_layer_norm
    return [*before, *form(rest, facts)]


def _rms_norm(node: NodeProto, facts: Facts) -> list[NodeProto]:
    x, gamma = node.input
    return [_rms_normalization(node, x, gamma, node.output[0], facts)]


def _add_rms_norm(node: NodeProto, facts: Facts) -> list[NodeProto]:
    x, residual, gamma = node.input
    y, total = node.output
    norm = _rms_normalization(node, total, gamma, y, facts)
    return [_make("Add", [x, residual], [total], node), norm]


def _rms_normalization(node: NodeProto, x: str, gamma: str, y: str, facts: Facts) -> NodeProto:
    facts.needs_opset(23, "RMSNormalization")
    return _make(
        "RMSNormalization", [x, gamma], [y], node, axis=-1, epsilon=_attribute(node, "epsilon")
    )


def _add_layer_norm(node: NodeProto, facts: Facts) -> list[NodeProto]:
    facts.needs_opset(17, "LayerNormalization")
    x, residual, gamma, beta, *bias = node.input
    y, total = node.output
    if {facts.type_of(name) for name in (gamma, beta)} != {facts.type_of(x)}:
        raise Unable("TensorRT's LayerNormalization wants gamma and beta in the type of x")
    partial = f"{total}/without_bias" if bias else total
    nodes = [_make("Add", [x, residual], [partial], node)]
    if bias:
        nodes.append(_make("Add", [partial, bias[0]], [total], node))
    epsilon = _attribute(node, "epsilon")
    norm = _make("LayerNormalization", [total, gamma, beta], [y], node, axis=-1, epsilon=epsilon)
    return [*nodes, norm]


def _flash_attention(node: NodeProto, facts: Facts) -> list[NodeProto]:
    """TensorRT's Attention layer computes in fp16 and bf16 only, and knows few of the variants."""
    facts.needs_opset(23, "Attention")
    q = node.input[0]
    dtype = facts.type_of(q)
    mask = list(node.input[3:])
    causal = bool(_attribute(node, "causal", 0))
    if dtype not in HALVES:
        raise Unable(f"TensorRT's Attention takes no {type_name(dtype)}")
    for name, plain in (("softcap", 0.0), ("window", 0), ("layout", "BHSD"), *_INPUTS):
        if (value := _attribute(node, name, plain)) not in (plain, str(plain).encode()):
            raise Unable(f"TensorRT's Attention has no {name} {value}")
    if causal and mask:
        raise Unable("TensorRT's Attention takes no mask beside is_causal")
    if mask and facts.type_of(mask[0]) not in (dtype, TensorProto.BOOL):
        raise Unable(f"TensorRT's Attention wants the mask in the type of {q}")
    if _attribute(node, "nan_guard", 0):
        raise Unable("what TensorRT's Attention gives for a fully masked row is not documented")
    scale = _attribute(node, "scale")
    inputs = [*node.input[:3], *mask]
    return [_make("Attention", inputs, node.output, node, scale=scale, is_causal=int(causal))]


def _rope(node: NodeProto, facts: Facts) -> list[NodeProto]:
    """RotaryEmbedding has one row of angles for both halves of a head, and none for each head."""
    facts.needs_opset(23, "RotaryEmbedding")
    x, *tables = node.input
    if _attribute(node, "interleaved", 0):
        raise Unable("RotaryEmbedding wants the angles of pairs once, they are there twice")
    shape, turning = facts.shape_of(x), int(_attribute(node, "rotary_dim"))
    rows = [_half_of(table, facts) for table in tables]
    for name in rows:
        if len(shape) != 4 or facts.shape_of(name) != (shape[0], shape[2], turning // 2):
            raise Unable(f"RotaryEmbedding wants {name} as [batch, sequence, {turning // 2}]")
        if facts.values[name].elem_type != facts.values[x].elem_type:
            raise Unable(f"RotaryEmbedding wants {name} in the type of {x}")
    part = turning if _attribute(node, "head_size", 0) else 0
    return [_make("RotaryEmbedding", [x, *rows], node.output, node, rotary_embedding_dim=part)]


def _half_of(table: str, facts: Facts) -> str:
    """What a table [batch, 1, sequence, size] holds twice, as [batch, sequence, size / 2]."""
    spread = facts.producers.get(table)
    both = None if spread is None else facts.producers.get(spread.input[0])
    if spread and both and (spread.op_type, both.op_type) == ("Unsqueeze", "Concat"):
        half = str(both.input[0])
        batch, heads, seq, size = facts.shape_of(table)
        alike = len(both.input) == 2 and both.input[1] == half and heads == 1
        if alike and facts.shape_of(half) == (batch, seq, int(size) // 2):
            return half
    raise Unable(f"{table} is not provably one half of the angles twice")


_NATIVE: dict[str, Callable[[NodeProto, Facts], list[NodeProto]]] = {
    ALL_REDUCE: _collective,
    ALL_GATHER: _collective,
    WITH_NORM: _all_reduce_add_norm,
    "RmsNorm": _rms_norm,
    "AddRmsNorm": _add_rms_norm,
    "AddLayerNorm": _add_layer_norm,
    "FlashAttention": _flash_attention,
    "Rope": _rope,
}


def _make(
    op: str, inputs: Sequence[str], outputs: Sequence[str], origin: NodeProto, **attributes: Any
) -> NodeProto:
    return helper.make_node(op, inputs, outputs, f"{origin.name}/{op}", **attributes)


_REQUIRED = object()


def _attribute(node: NodeProto, name: str, default: Any = _REQUIRED) -> Any:
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    if default is _REQUIRED:
        raise Unable(f"it has no attribute {name}")
    return default


def prepare_attention(node: NodeProto) -> None:
    """Let TensorRT write an Attention out where it has no kernel, as for fp32."""
    if len(node.input) > LENGTHS and node.input[LENGTHS]:
        raise EngineError(
            f"{label(node)} has nonpad_kv_seqlen, which TensorRT silently ignores",
            "export the model with an attention mask",
        )
    if all(item.name != "TRT_decomposable" for item in node.attribute):
        node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
