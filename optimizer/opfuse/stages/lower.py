"""Decides for each fused node what TensorRT gets: its body, standard operators, or the plugin.

The result is for TensorRT's parser alone, which looks functions up by operator name and ignores
domain and overload: of two functions of one name it silently takes one for both. So here every
function has a name of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableSequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from opfuse.errors import EngineError
from opfuse.fusions.attention_body import HIDDEN
from opfuse.graph import microsoft, surgeon
from opfuse.graph.collectives import COLLECTIVES, group_size
from opfuse.graph.dist_collective import rewrite_bodies
from opfuse.graph.native import UNREAD_SUM, Facts, Unable, native, prepare_attention
from opfuse.graph.protos import HALVES, all_nodes, every_node, label, opset_of, subgraphs, type_name
from opfuse.graph.shapes import analyse

DOMAIN = "opfuse"
_FIRST_MASK = {
    "FlashAttention": 3,
    "PackedAttention": 1,
    "MaskedSoftmax": 1,
}  # its place among the inputs
_PRODUCTS = ("GemmAct", "GatedGemm")
# What onnxruntime's domain has of the same meaning, from before ONNX had them or for more types.
_ALIKE = ("DequantizeLinear", "Gelu", "GridSample", "Pad", "QuantizeLinear", "Range", "Trilu")
_WITH_SUM = ("AddRmsNorm", "AddLayerNorm")


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
    _refuse_namesakes(model)
    facts = Facts(model, opset_of(model, 1), _types(model), group_size(model))
    choices: list[Lowering] = []
    for nodes in _node_lists(model.graph):
        _lower_nodes(nodes, want, plugins, facts, choices)
    _mark_unread_sums(model.graph)
    rewrite_bodies(model, facts.ranks, facts.opset)
    _rename_functions(model)
    for node in every_node(model):
        if node.op_type == "Attention" and not node.domain:
            prepare_attention(node)
    return tuple(choices)


def _refuse_namesakes(model: ModelProto) -> None:
    """Refuse an operator of another domain with a name of ONNX's: the parser takes it for that.

    ONNX's own comes before plugins and functions there.
    """
    functions = {_key(function, function.name) for function in model.functions}
    for node in every_node(model):
        own = node.domain in ("", DOMAIN) or _key(node, node.op_type) in functions
        alike = node.domain == microsoft.DOMAIN and node.op_type in _ALIKE
        if not (own or alike) and onnx.defs.has(node.op_type):
            raise EngineError(
                f"node {label(node)} is of domain {node.domain}, and TensorRT goes by the "
                f"name alone: it would compute ONNX's {node.op_type}",
                "rename the operator and its plugin, or define it by a local function",
            )


def _lower_nodes(
    nodes: MutableSequence[NodeProto],
    want: str,
    plugins: Collection[str],
    facts: Facts,
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
    node: NodeProto, want: str, plugins: Collection[str], facts: Facts
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
            return "native", "TensorRT has layers for it", native(node, facts)
        except Unable as reason:
            return "leave", str(reason), [_left(node)]
    return "leave", "asked for", [_left(node)]


def _why_not(node: NodeProto, facts: Facts) -> str:
    """Why the plugin is not for this node, or nothing."""
    if node.op_type in _PRODUCTS:
        return _why_no_product(node, facts)
    if node.op_type not in _FIRST_MASK:
        return ""
    if any(item.name == "nan_guard" and item.i == HIDDEN for item in node.attribute):
        return "the plugin does not tell a row that sees no key from one with a NaN in it"
    first = _FIRST_MASK[node.op_type]
    known = [dtype for name in node.input[:first] if (dtype := facts.types.get(name))]
    end = len(node.input) - any(item.name == "lengths" and item.i for item in node.attribute)
    masks = [dtype for name in node.input[first:end] if (dtype := facts.types.get(name))]
    if known and masks and masks[0] not in (known[0], TensorProto.FLOAT):
        return f"the plugin wants the mask in the type of {node.input[0]}, or in fp32"
    return ""


def _why_no_product(node: NodeProto, facts: Facts) -> str:
    """The plugin multiplies fp16 and bf16 on tensor cores; TensorRT chooses among many kernels."""
    known = [dtype for name in node.input if (dtype := facts.types.get(name))]
    if not known or not set(known) <= HALVES:
        have = ", ".join(map(type_name, known)) or "an unknown type"
        return f"the plugin takes fp16 and bf16, it has {have}"
    return ""


def _why_no_plugin(plugins: Collection[str]) -> str:
    return "the plugin library does not have it" if plugins else "no plugin library is loaded"


def _mark_unread_sums(graph: GraphProto) -> None:
    """Let the plugins of norms leave out a sum that nobody reads, a quarter of what they move."""
    nodes = list(all_nodes(graph.node))
    read = {name for node in nodes for name in node.input}
    inner = (part for node in nodes for part in subgraphs(node))
    read |= {value.name for part in (graph, *inner) for value in part.output}
    for node in nodes:
        if node.op_type in _WITH_SUM and _is_plugin(node) and node.output[1] not in read:
            node.attribute.append(onnx.helper.make_attribute(UNREAD_SUM, 0))


def _left(node: NodeProto) -> NodeProto:
    """The node as a plain function call: the attribute is what makes it a plugin."""
    _drop(node, "plugin_namespace")
    return node


def _drop(node: NodeProto, attribute: str) -> None:
    kept = [item for item in node.attribute if item.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)


def _types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor; TorchScript exports do not say those between nodes."""
    graph = surgeon.read(model)
    facts = analyse(graph)
    found = {name: facts.dtype(tensor) for name, tensor in graph.tensors().items()}
    return {name: element for name, element in found.items() if element}


def _node_lists(graph: GraphProto) -> Iterator[MutableSequence[NodeProto]]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _node_lists(inner)
    yield graph.node


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
    for node in every_node(model):
        key = _key(node, node.op_type)
        if key in names and not _is_plugin(node):
            node.op_type, node.overload = names[key], ""
    for function in model.functions:
        function.name, function.overload = names[_key(function, function.name)], ""


def _key(item: NodeProto | onnx.FunctionProto, name: str) -> tuple[str, str, str]:
    return item.domain, name, item.overload


def _is_plugin(node: NodeProto) -> bool:
    return any(item.name == "plugin_namespace" for item in node.attribute)
