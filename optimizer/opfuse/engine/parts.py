"""Parts of a model as models of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import FunctionProto, ModelProto, NodeProto, ValueInfoProto, helper

from opfuse.graph.protos import all_nodes, subgraphs


def extract(
    model: ModelProto,
    places: Iterable[int],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> ModelProto:
    """The nodes at these places of the graph as a model, with the weights that they read."""
    nodes = [model.graph.node[index] for index in places]
    used = {name for node in nodes for name in reads(node)}
    weights = [item for item in model.graph.initializer if item.name in used]
    graph = helper.make_graph(nodes, "segment", inputs, outputs, weights)
    made = helper.make_model(
        graph, opset_imports=model.opset_import, functions=functions_of(model, nodes)
    )
    made.ir_version = model.ir_version
    return made


def reads(node: NodeProto) -> list[str]:
    """Every tensor that a node reads, those that its subgraphs take from outside included."""
    found = [name for name in node.input if name]
    for graph in subgraphs(node):
        own = {item.name for item in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        inner = [name for item in graph.node for name in reads(item)]
        inner += [item.name for item in graph.output]
        found += [name for name in inner if name not in own]
    return list(dict.fromkeys(found))


def functions_of(model: ModelProto, nodes: Iterable[NodeProto]) -> list[FunctionProto]:
    """The functions that the nodes call, and those that these call."""
    by_key = {(item.domain, item.name): item for item in model.functions}
    wanted: dict[tuple[str, str], FunctionProto] = {}
    open_nodes = list(all_nodes(nodes))
    while open_nodes:
        node = open_nodes.pop()
        key = node.domain, node.op_type
        if key in by_key and key not in wanted:
            wanted[key] = by_key[key]
            open_nodes += all_nodes(by_key[key].node)
    return [item for key, item in by_key.items() if key in wanted]
