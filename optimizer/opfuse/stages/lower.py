"""Decides for each fused node what TensorRT gets: its body, standard operators, or the plugin.

The result is for TensorRT's parser alone, which looks functions up by operator name and ignores
domain and overload: of two functions of one name it silently takes one for both. So here every
function has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from opfuse.errors import EngineError
from opfuse.graph.collectives import ALL_GATHER, ALL_REDUCE, COLLECTIVES, WITH_NORM, group_size
from opfuse.graph.dist_collective import dist_collective, rewrite_bodies, sum_apart
from opfuse.graph.protos import all_nodes, label, subgraphs, type_name

DOMAIN = "opfuse"
_NONPAD_KV_SEQLEN = 6  # its place among the inputs of Attention
_FIRST_MASK = {
    "FlashAttention": 3,
    "PackedAttention": 1,
    "MaskedSoftmax": 1,
}  # its place among the inputs
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_PRODUCTS = ("GemmAct", "GatedGemm")


@dataclass(frozen=True)
class Lowering:
    """What became of one fused node: ``choice`` is "leave", "native" or "plugin"."""

    node: str
    op: str
    choice: str
    reason: str


def lower(model: ModelProto, want: str, plugins: Collection[str]) -> tuple[Lowering, ...]:
    """Rewrite ``model`` in place into what TensorRT's parser is given.

    Args:
        model: A fused model; afterwards it is for TensorRT only, not for the ONNX checker.
        want: "plugin" and "auto" take the plugin where there is one (what does not pay is left
            later, by stages/tune), "native" standard operators where TensorRT has layers for them,
            "leave" the body; what cannot be had is left.
        plugins: The ops that the plugin library has; empty without a library.

    Returns:
        The choice for every fused node, those of subgraphs first.

    Raises:
        EngineError: The model has an operator that TensorRT would compute wrongly.
    """
    facts = _Facts(model, _opset(model), _types(model.graph), group_size(model))
    choices: list[Lowering] = []
    for nodes in _node_lists(model.graph):
        _lower_nodes(nodes, want, plugins, facts, choices)
    rewrite_bodies(model, facts.ranks, facts.opset)
    _rename_functions(model)
    for node in _every_node(model):
        if node.op_type == "Attention":
            _prepare_attention(node)
    return tuple(choices)


class Unable(Exception):
    """Why a node has no native form here."""


@dataclass(frozen=True)
class _Facts:
    """What the native forms depend on; ``model`` is read while its nodes are still its own."""

    model: ModelProto
    opset: int
    types: dict[str, int]
    ranks: int

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


def _lower_nodes(
    nodes: MutableSequence[NodeProto],
    want: str,
    plugins: Collection[str],
    facts: _Facts,
    choices: list[Lowering],
) -> None:
    lowered: list[NodeProto] = []
    for node in nodes:
        if node.domain != DOMAIN:
            lowered.append(node)
            continue
        choice, reason, instead = _choose(node, want, plugins, facts)
        choices.append(Lowering(node.name, node.op_type, choice, reason))
        lowered += instead
    kept = [NodeProto.FromString(node.SerializeToString()) for node in lowered]
    del nodes[:]
    nodes.extend(kept)


def _choose(
    node: NodeProto, want: str, plugins: Collection[str], facts: _Facts
) -> tuple[str, str, list[NodeProto]]:
    """The choice, its reason, and the nodes that stand for it."""
    if want in ("auto", "plugin"):
        if node.op_type in plugins:
            if reason := _why_not(node, facts):
                return "leave", reason, [_left(node)]
            node.overload = ""
            return "plugin", "the plugin library has it", [node]
        if node.op_type not in COLLECTIVES:
            return "leave", _why_no_plugin(plugins), [_left(node)]
    if want == "native" or node.op_type in COLLECTIVES:
        try:
            return "native", "TensorRT has layers for it", _native(node, facts)
        except Unable as reason:
            return "leave", str(reason), [_left(node)]
    return "leave", "asked for", [_left(node)]


def _why_not(node: NodeProto, facts: _Facts) -> str:
    """Why the plugin is not for this node, or nothing."""
    if node.op_type in _PRODUCTS:
        return _why_no_product(node, facts)
    if node.op_type not in _FIRST_MASK:
        return ""
    first = _FIRST_MASK[node.op_type]
    known = [dtype for name in node.input[:first] if (dtype := facts.types.get(name))]
    masks = [dtype for name in node.input[first:] if (dtype := facts.types.get(name))]
    if known and masks and masks[0] not in (known[0], TensorProto.FLOAT):
        return f"the plugin wants the mask in the type of {node.input[0]}, or in fp32"
    return ""


def _why_no_product(node: NodeProto, facts: _Facts) -> str:
    """The plugin multiplies fp16 and bf16 on tensor cores; TensorRT chooses among many kernels."""
    known = [dtype for name in node.input if (dtype := facts.types.get(name))]
    if not known or not set(known) <= set(_HALVES):
        have = ", ".join(map(type_name, known)) or "an unknown type"
        return f"the plugin takes fp16 and bf16, it has {have}"
    return ""


def _why_no_plugin(plugins: Collection[str]) -> str:
    return "the plugin library does not have it" if plugins else "no plugin library is loaded"


def _left(node: NodeProto) -> NodeProto:
    """The node as a plain function call: the attribute is what makes it a plugin."""
    _drop(node, "plugin_namespace")
    return node


def _drop(node: NodeProto, attribute: str) -> None:
    kept = [item for item in node.attribute if item.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)


def _native(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    form = _NATIVE.get(node.op_type)
    if form is None:
        raise Unable("TensorRT has no single layer for it")
    return form(node, facts)


def _collective(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    return dist_collective(node, facts.ranks, facts.opset)


def _all_reduce_add_norm(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """The sum over the ranks, and then the norm in its own native form."""
    before, rest = sum_apart(node, facts.ranks, facts.opset)
    facts.types.setdefault(rest.input[0], facts.type_of(node.input[0]))
    form = _add_rms_norm if rest.op_type == "AddRmsNorm" else _add_layer_norm
    return [*before, *form(rest, facts)]


def _rms_norm(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    x, gamma = node.input
    return [_rms_normalization(node, x, gamma, node.output[0], facts)]


def _add_rms_norm(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    x, residual, gamma = node.input
    y, total = node.output
    norm = _rms_normalization(node, total, gamma, y, facts)
    return [_make("Add", [x, residual], [total], node), norm]


def _rms_normalization(node: NodeProto, x: str, gamma: str, y: str, facts: _Facts) -> NodeProto:
    facts.needs_opset(23, "RMSNormalization")
    return _make(
        "RMSNormalization", [x, gamma], [y], node, axis=-1, epsilon=_attribute(node, "epsilon")
    )


def _add_layer_norm(node: NodeProto, facts: _Facts) -> list[NodeProto]:
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


def _flash_attention(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    """TensorRT's Attention layer computes in fp16 and bf16 only, and knows few of the variants."""
    facts.needs_opset(23, "Attention")
    q = node.input[0]
    dtype = facts.type_of(q)
    mask = list(node.input[3:])
    causal = bool(_attribute(node, "causal", 0))
    if dtype not in _HALVES:
        raise Unable(f"TensorRT's Attention takes no {type_name(dtype)}")
    for name, plain in (("softcap", 0.0), ("window", 0), ("layout", "BHSD")):
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


def _rope(node: NodeProto, facts: _Facts) -> list[NodeProto]:
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


def _half_of(table: str, facts: _Facts) -> str:
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


_NATIVE: dict[str, Callable[[NodeProto, _Facts], list[NodeProto]]] = {
    ALL_REDUCE: _collective,
    ALL_GATHER: _collective,
    WITH_NORM: _all_reduce_add_norm,
    "RmsNorm": _rms_norm,
    "AddRmsNorm": _add_rms_norm,
    "AddLayerNorm": _add_layer_norm,
    "FlashAttention": _flash_attention,
    "Rope": _rope,
}


def _prepare_attention(node: NodeProto) -> None:
    """Let TensorRT write an Attention out where it has no kernel, as for fp32."""
    if len(node.input) > _NONPAD_KV_SEQLEN and node.input[_NONPAD_KV_SEQLEN]:
        raise EngineError(
            f"{label(node)} has nonpad_kv_seqlen, which TensorRT silently ignores",
            "export the model with an attention mask",
        )
    if all(item.name != "TRT_decomposable" for item in node.attribute):
        node.attribute.append(helper.make_attribute("TRT_decomposable", 1))


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


def _opset(model: ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain == ""), default=1)


def _types(graph: GraphProto) -> dict[str, int]:
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def _node_lists(graph: GraphProto) -> Iterator[MutableSequence[NodeProto]]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _node_lists(inner)
    yield graph.node


def _every_node(model: ModelProto) -> list[NodeProto]:
    bodies = (node for function in model.functions for node in all_nodes(function.node))
    return [*all_nodes(model.graph.node), *bodies]


def _rename_functions(model: ModelProto) -> None:
    """Give every function a name that no operator, plugin or other function has."""
    taken = {schema.name for schema in onnx.defs.get_all_schemas()}
    taken |= {node.op_type for node in all_nodes(model.graph.node)}
    names: dict[tuple[str, str, str], str] = {}
    for function in model.functions:
        name = f"{function.name}_body"
        while name in taken:
            name += "_"
        taken.add(name)
        names[_key(function, function.name)] = name
    for node in _every_node(model):
        key = _key(node, node.op_type)
        if key in names and not _is_plugin(node):
            node.op_type, node.overload = names[key], ""
    for function in model.functions:
        function.name, function.overload = names[_key(function, function.name)], ""


def _key(item: NodeProto | onnx.FunctionProto, name: str) -> tuple[str, str, str]:
    return item.domain, name, item.overload


def _is_plugin(node: NodeProto) -> bool:
    return any(item.name == "plugin_namespace" for item in node.attribute)
