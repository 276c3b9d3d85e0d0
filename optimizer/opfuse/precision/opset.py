"""A graph as the low type wants it: in an opset whose operators take it, and without HardSwish.

Convolutions, pooling, and some activations take bf16 from opset 22 on.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph import edit
from opfuse.graph.facts import Facts
from opfuse.precision.types import allowed, formal, schema

_TAKES_BF16 = 22
_OLDEST = 17  # below it the graph is not fused, and older operators mean something else
# What means something else in 22 than in 17 (Changelog.md); the rest has more types or options.
_CHANGED = frozenset({"GridSample", "DFT", "GroupNormalization"})


def raise_opset(graph: gs.Graph, element: int) -> bool:
    """Import opset 22, in place, if an operator takes ``element`` in it that does not now.

    Returns:
        Whether it was done; it is not where an operator of the graph changed its meaning on the
        way, and then what does not take the type stays in fp32.
    """
    nodes = [node for node in edit.every_node(graph) if edit.is_standard(node)]
    opset = int(graph.opset)
    if not _OLDEST <= opset < _TAKES_BF16 or any(node.op in _CHANGED for node in nodes):
        return False
    if not any(
        _takes(node.op, _TAKES_BF16, element) and not _takes(node.op, opset, element)
        for node in nodes
    ):
        return False
    for node in nodes:
        _respell(node)
    graph.opset = _TAKES_BF16
    for entry in graph.import_domains:
        if entry.domain in ("", "ai.onnx"):
            entry.version = _TAKES_BF16
    return True


def spell_out(graph: gs.Graph, facts: Facts, element: int) -> bool:
    """Write HardSwish as ONNX defines it where TensorRT does not import it in ``element``.

    Returns:
        Whether there was one.
    """
    late = int(graph.opset) >= _TAKES_BF16 and element == TensorProto.BFLOAT16
    found = [n for n in graph.nodes if late and n.op == "HardSwish" and edit.is_standard(n)]
    names = edit.names(graph)
    for node in found:
        (x,), (y,) = node.inputs, node.outputs
        name = f"{y.name}/gate"
        while name in names:
            name += "_"
        names.add(name)
        gate = gs.Variable(name, x.dtype, x.shape)
        attributes = {"alpha": 1 / 6, "beta": 0.5}
        graph.nodes.append(gs.Node("HardSigmoid", f"{node.name}/gate", attributes, [x], [gate]))
        facts.infer(graph.nodes[-1])
        node.op, node.attrs = "Mul", {}
        node.inputs.append(gate)
    if found:
        edit.sort(graph)
    return bool(found)


def _takes(op: str, opset: int, element: int) -> bool:
    """Whether the first input of an operator may be of a type."""
    found = schema(op, "", opset)
    return found is not None and element in allowed(found, formal(found.inputs, 0))


def _respell(node: gs.Node) -> None:
    """Write what opset 18 moved: axes of reductions are an input, a Split says how many parts."""
    if node.op.startswith("Reduce") and "axes" in node.attrs:
        axes = np.array(node.attrs.pop("axes"), np.int64)
        node.inputs.append(gs.Constant(f"{node.outputs[0].name}/axes", axes))
    if node.op == "Split" and len(node.inputs) < 2:
        node.attrs.setdefault("num_outputs", len(node.outputs))
