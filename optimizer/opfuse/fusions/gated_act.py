"""GatedAct: y = activation(gate) * up (Shazeer 2020).

With one input, gate and up are the halves of its last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from opfuse.fusions import activations
from opfuse.fusions.activation_body import KIND, active, number_kinds
from opfuse.fusions.guards import floating, last_axis, same_shape, same_type, text
from opfuse.graph import edit
from opfuse.graph.definition import Definition, Uses, halves
from opfuse.graph.edit import producer
from opfuse.graph.facts import Facts
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, op

__all__ = ["DEFINITION", "FUSION"]

y = op.Mul(activations.gate(Var("gate")), Var("up"))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "gate", "up")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    _refuse_broadcast(found)
    same_shape(found, "gate", "up")
    if found.label("activation") == "quick_gelu":
        raise Miss("x * sigmoid(c x) is not what gates", found.reader(found["up"]))
    activation = activations.check(found)
    inputs: tuple[gs.Tensor, ...] = (found["gate"], found["up"])
    split = _packed(found)
    if split is not None:
        inputs = (split.inputs[0],)
    node = NewNode("GatedAct", inputs, (result,), {"activation": activation})
    return Replacement([node], [] if split is None else [split])


def _refuse_broadcast(found: Found) -> None:
    """Refuse one value of up for all features of gate; along other axes it is no gated unit."""
    gate, up = found.shape("gate"), found.shape("up")
    if up[-1:] == (1,) != gate[-1:] and up[:-1] == gate[:-1]:
        raise Miss(f"up {text(up)} is broadcast over {text(gate)}", found.reader(found["up"]))


def _packed(found: Found) -> gs.Node | None:
    """Return the Split whose two halves are gate and up, in this order, and nobody else's."""
    work, gate, up = found.work, found["gate"], found["up"]
    split = producer(gate)
    if split is None or split.op != "Split":
        return None
    shape, parts = work.shape(split.inputs[0]), list(split.outputs)
    if shape is None or len(parts) != 2 or parts[0] is not gate or parts[1] is not up:
        return None
    try:
        last_axis(split, len(shape), default=0)
    except Miss:
        return None
    own = {id(node) for node in found.nodes}
    alone = all(id(user) in own or not work.alive(user) for part in parts for user in part.outputs)
    return split if alone and not any(work.is_output(part) for part in parts) else None


def _body(uses: Uses) -> str:
    split = "" if uses.inputs > 1 else halves(uses.opset, "first", "second", "gate")
    gate, up = ("gate", "up") if uses.inputs > 1 else ("first", "second")
    return f"""
        {split}
        gate_wide = Cast<to: int = 1>({gate})
        up_wide = Cast<to: int = 1>({up})
        {active(uses, "gate_wide")}
        product = Mul(active, up_wide)
        y = CastLike(product, gate)"""


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], _: Facts) -> None:
    """Split packed inputs again where other nodes of the model have two."""
    number_kinds(nodes)
    if len({len(node.inputs) for node in nodes}) < 2:
        return
    for node in nodes:
        if len(node.inputs) == 1:
            packed = node.inputs[0]
            parts = [gs.Variable(f"{packed.name}/{part}", packed.dtype) for part in ("gate", "up")]
            attrs = {"axis": -1, **({"num_outputs": 2} if graph.opset >= 18 else {})}
            split = gs.Node("Split", f"{node.name}/split", attrs, [packed], parts)
            graph.nodes.append(split)
            edit.set_input(node, 0, parts[0])
            node.inputs.append(parts[1])


DEFINITION = Definition("GatedAct", ("gate", "up"), ("y",), ("activation", KIND), _body, _unify)
FUSION = Fusion("GatedAct", ("Mul",), y, _build, near=6)
