"""Decides for each fused node what TensorRT gets: its body, standard operators, or the plugin.

The result is for TensorRT's parser alone, which looks functions up by operator name and ignores
domain and overload: of two functions of one name it silently takes one for both. So here every
function has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from opfuse.errors import EngineError
from opfuse.graph.protos import all_nodes, label, subgraphs, type_name

DOMAIN = "opfuse"
_NONPAD_KV_SEQLEN = 6  # its place among the inputs of Attention
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


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
        want: "auto" or "plugin" takes the plugin where there is one, "native" standard operators
            where TensorRT has layers for them, "leave" the body; what cannot be had is left.
        plugins: The ops that the plugin library has; empty without a library.

    Returns:
        The choice for every fused node, those of subgraphs first.

    Raises:
        EngineError: The model has an operator that TensorRT would compute wrongly.
    """
    facts = _Facts(_opset(model), _types(model.graph))
    choices: list[Lowering] = []
    for nodes in _node_lists(model.graph):
        _lower_nodes(nodes, want, plugins, facts, choices)
    _rename_functions(model)
    for node in _every_node(model):
        if node.op_type == "Attention":
            _prepare_attention(node)
    return tuple(choices)


class Unable(Exception):
    """Why a node has no native form here."""


@dataclass(frozen=True)
class _Facts:
    """What the native forms depend on: the model's opset and the types of its tensors."""

    opset: int
    types: dict[str, int]

    def needs_opset(self, version: int, op: str) -> None:
        """Refuse models of an older opset, which do not have ``op``."""
        if self.opset < version:
            raise Unable(f"{op} needs opset {version}, the model has {self.opset}")

    def type_of(self, tensor: str) -> int:
        """The element type of a tensor that must be known."""
        if tensor not in self.types:
            raise Unable(f"the type of {tensor} is not known")
        return self.types[tensor]


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
            node.overload = ""
            return "plugin", "the plugin library has it", [node]
        return "leave", _why_no_plugin(plugins), [_left(node)]
    if want == "native":
        try:
            return "native", "TensorRT has layers for it", _native(node, facts)
        except Unable as reason:
            return "leave", str(reason), [_left(node)]
    return "leave", "asked for", [_left(node)]


def _why_no_plugin(plugins: Collection[str]) -> str:
    return "the plugin library does not have it" if plugins else "no plugin library is loaded"


def _left(node: NodeProto) -> NodeProto:
    """The node as a plain function call: the attribute is what makes it a plugin."""
    kept = [item for item in node.attribute if item.name != "plugin_namespace"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return node


def _native(node: NodeProto, facts: _Facts) -> list[NodeProto]:
    form = _NATIVE.get(node.op_type)
    if form is None:
        raise Unable("TensorRT has no single layer for it")
    return form(node, facts)


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
    for name, plain in (("softcap", 0.0), ("window", -1), ("layout", "BHSD")):
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


_NATIVE: dict[str, Callable[[NodeProto, _Facts], list[NodeProto]]] = {
    "RmsNorm": _rms_norm,
    "AddRmsNorm": _add_rms_norm,
    "AddLayerNorm": _add_layer_norm,
    "FlashAttention": _flash_attention,
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
