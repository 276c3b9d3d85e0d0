"""Plugin nodes of a lowered model: which they are, and how one is given back to TensorRT."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from opfuse.engine.network import NAMESPACE
from opfuse.graph.collectives import is_ours
from opfuse.graph.native import OF_PLUGINS

PLAIN_PRODUCT = "GemmAct_body_plain"


def is_plugin(node: NodeProto) -> bool:
    """Whether the node is one of ours and stage lower made it a plugin layer."""
    return any(
        item.name == "plugin_namespace" and item.s == NAMESPACE.encode() for item in node.attribute
    )


def body_name(model: ModelProto, op: str) -> str:
    """What stage lower called the function of a plugin's op; empty where that is not clear."""
    names = [f.name for f in model.functions if f.name.rstrip("_") == f"{op}_body"]
    return names[0] if len(names) == 1 else ""


def leave(model: ModelProto, node: NodeProto) -> bool:
    """Make a plugin node a call of its function; whether that could be done.

    What speaks to other ranks stays: TensorRT has it as a layer only where it was lowered to that.
    A product without an activation becomes a MatMul and an Add, which TensorRT fuses better than
    the sum in fp32 that the function has.
    """
    if is_ours(node.domain, node.op_type):
        return False
    if node.op_type == "GemmAct" and any(item.s == b"none" for item in node.attribute):
        return _leave_product(model, node)
    name = body_name(model, node.op_type)
    if name:
        kept = [item for item in node.attribute if item.name not in OF_PLUGINS]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.op_type = name
    return bool(name)


def choose_tactic(node: NodeProto, tactic: int) -> None:
    """Let a plugin node take one of its ways; with 0 it chooses itself."""
    kept = [item for item in node.attribute if item.name != "tactic"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if tactic:
        node.attribute.append(helper.make_attribute("tactic", tactic))


def _leave_product(model: ModelProto, node: NodeProto) -> bool:
    product = helper.make_node("MatMul", ["x", "weight"], ["y"])
    nodes = [product]
    if len(node.input) > 2:
        product.output[0] = "product"
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    if all(item.name != PLAIN_PRODUCT for item in model.functions):
        names = ["x", "weight", "bias"][: len(node.input)]
        imports = model.opset_import
        made = helper.make_function(NAMESPACE, PLAIN_PRODUCT, names, ["y"], nodes, imports)
        model.functions.append(made)
    del node.attribute[:]
    node.op_type = PLAIN_PRODUCT
    return True
