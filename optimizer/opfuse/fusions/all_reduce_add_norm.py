"""AllReduceAddNorm: sum = all-reduce(x) + bias + residual; y = norm(sum). Seed 2.7.

Behind a product that several ranks share stands its sum over them, then the bias, the residual, and
the norm. One kernel does all of it while the parts arrive. `opfuse shard` runs this room, and
`opfuse build` on a rank's file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions import add_layer_norm, rms_norm
from opfuse.fusions.guards import floating, same_shape, static, vector
from opfuse.graph.collectives import ALL_REDUCE, WITH_NORM
from opfuse.graph.definition import Definition, Uses
from opfuse.graph.facts import Facts
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Var, any_of, fused, op

reduced = fused.AllReduce(Var("x"))
plain = any_of(op.Identity(reduced), reduced)
biased = any_of(op.Add(plain, Var("bias")), plain)
view = op.Reshape(biased, Var("shape"))
whole = any_of(view, biased)
rms = any_of(
    fused.AddRmsNorm(whole, Var("residual"), Var("gamma")),
    fused.AddRmsNorm(Var("residual"), whole, Var("gamma")),
)
layer = any_of(
    fused.AddLayerNorm(whole, Var("residual"), Var("gamma"), Var("beta")),
    fused.AddLayerNorm(Var("residual"), whole, Var("gamma"), Var("beta")),
)
y = any_of(rms, layer)

_NORMS = {"AddRmsNorm": "rms", "AddLayerNorm": "layer"}
_BIAS = {"rms": 3, "layer": 4}  # its place among the inputs


def _build(found: Found) -> Replacement:
    norm, all_reduce = found.anchor, found.node(reduced)
    if all_reduce.attrs.get("reduce_op", "sum") != "sum":
        raise Miss(f"reduces by {all_reduce.attrs['reduce_op']}, want sum", all_reduce)
    dtype = floating(found, "residual")
    columns = found.shape("residual")[-1]
    kind = _NORMS[norm.op]
    found.work.claim(WITH_NORM, "norm", kind, norm)
    inputs: list[gs.Tensor] = [found["x"]]
    before: list[NewNode] = []
    if found.has(view):
        inputs[0], before = _seen(found)
    else:
        same_shape(found, "x", "residual")
    if found.work.dtype(inputs[0]) != dtype:
        raise Miss(f"{found['x'].name} and {found['residual'].name} differ in type", all_reduce)
    inputs += [found["residual"], found["gamma"], *([found["beta"]] if kind == "layer" else [])]
    if found.has("bias"):
        bias = vector(found, "bias", columns, dtype)
        if found.work.dtype(bias) != dtype:
            raise Miss(f"{bias.name} has another type than the sum", found.reader(found["bias"]))
        inputs.append(bias)
    attrs = {
        "epsilon": norm.attrs["epsilon"],
        "norm": kind,
        "group_size": all_reduce.attrs["group_size"],
    }
    made = NewNode(WITH_NORM, tuple(inputs), tuple(norm.outputs), attrs)
    return Replacement([*before, made])


def _seen(found: Found) -> tuple[gs.Tensor, list[NewNode]]:
    """The rank's part in the shape that the residual has: a view of it, made before the sum."""
    node = found.node(view)
    part = found.work.fresh(found["x"], "view")
    attrs = {key: node.attrs[key] for key in ("allowzero",) if key in node.attrs}
    made = NewNode("Reshape", (found["x"], found["shape"]), (part,), attrs, domain="")
    kept = found.work.shape(found["x"]) or ()
    seen = found.work.shape(node.outputs[0]) or ()
    if not kept or not seen or kept[-1] != seen[-1]:
        raise Miss("a Reshape behind the sum changes its rows", node)
    return part, [made]


def _unify(graph: gs.Graph, nodes: Sequence[gs.Node], facts: Facts) -> None:
    """Give every node a bias where one has it: a function has one list of inputs."""
    longest = max(len(node.inputs) for node in nodes)
    zeros: dict[tuple[int, int], gs.Constant] = {}
    for node in nodes:
        if len(node.inputs) == longest:
            continue
        columns = static((facts.shape(node.inputs[2]) or (0,))[-1], "the length of gamma", node)
        kind = facts.dtype(node.inputs[0]) or onnx.TensorProto.FLOAT
        if (columns, kind) not in zeros:
            values = np.zeros(columns, onnx.helper.tensor_dtype_to_np_dtype(kind))
            zeros[columns, kind] = gs.Constant(f"{node.name}/no_bias", values)
        node.inputs.append(zeros[columns, kind])


def _inputs(uses: Uses) -> tuple[str, ...]:
    return ("x", "residual", "gamma", *(("beta",) if _is_layer(uses) else ()), "bias")


def _is_layer(uses: Uses) -> bool:
    return uses.values("norm") == {"layer"}


def _body(uses: Uses) -> str:
    layer = _is_layer(uses)
    bias = uses.inputs > _BIAS["layer" if layer else "rms"]
    statements = add_layer_norm.statements if layer else rms_norm.statements
    # onnx knows no type for what AllReduce gives, and calls what follows an error without one.
    reduce = f'opfuse.{ALL_REDUCE} <group_size: int = @group_size, reduce_op: string = "sum">'
    return f"""
        over_ranks = {reduce} (x)
        total = CastLike(over_ranks, residual)
        {"biased = Add(total, bias)" if bias else ""}
        sum = Add({"biased" if bias else "total"}, residual)
        {statements(uses.opset, "sum")}"""


DEFINITION = Definition(
    WITH_NORM,
    _inputs,
    ("y", "sum"),
    ("epsilon", "norm", "group_size"),
    _body,
    unify=_unify,
    in_fp32=("gamma", "beta"),
)
FUSION = Fusion(
    WITH_NORM, ("AddRmsNorm", "AddLayerNorm"), y, _build, near=2, domain="opfuse", key=ALL_REDUCE
)
