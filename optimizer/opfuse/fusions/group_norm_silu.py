"""GroupNormSilu: silu of a GroupNorm over [batch, channels, ...] (Wu and He 2018; VAEs and UNets).

Each of ``num_groups`` groups of channels has its own mean and variance; gamma and beta are
[channels]. Statistics, affine, and activation are computed in fp32 and rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.fusions import activations
from opfuse.fusions.guards import FLOATS, floating, known_casts, same_type, static, text
from opfuse.graph.definition import Definition, Uses, mean_last
from opfuse.graph.fusion import Found, Fusion, Miss, NewNode, Replacement
from opfuse.graph.pattern import Const, Var, any_of, maybe_cast, op
from opfuse.graph.weights import load

PER_CHANNEL = 21  # ai.onnx opset from which GroupNormalization's scale is [channels]

x, gamma, beta = Var("x"), Var("gamma"), Var("beta")
wide = maybe_cast(x)
whole = op.GroupNormalization(wide, gamma, beta)
grouped = op.Reshape(wide, ...)
unit = op.InstanceNormalization(grouped, Const("ones"), Const("zeros"))
restored = op.Reshape(unit, ...)
affine = op.Add(op.Mul(restored, gamma), beta)
y = activations.silu(maybe_cast(any_of(whole, affine)))


def _build(found: Found) -> Replacement:
    dtype = floating(found, "x")
    result = found.anchor.outputs[0]
    same_type(found, result, dtype)
    shape = found.shape("x")
    if len(shape) < 3:
        raise Miss(f"x is {text(shape)}, want [batch, channels, ...]", found.anchor)
    channels = static(shape[1], "the number of channels", found.anchor)
    norm = found.node(whole if found.has(whole) else unit)
    groups = int(norm.attrs["num_groups"]) if found.has(whole) else _groups(found, channels)
    if groups < 1 or channels % groups:
        raise Miss(f"{channels} channels do not divide by {groups} groups", norm)
    if norm.attrs.get("stash_type", 1) != 1:
        raise Miss("computes in another type than fp32", norm)
    made: list[NewNode] = []
    weights = [_of_channels(found, name, channels, groups, made) for name in ("gamma", "beta")]
    known_casts(found)
    attrs = {"num_groups": groups, "epsilon": float(norm.attrs.get("epsilon", 1e-5))}
    made.append(NewNode("GroupNormSilu", (found["x"], *weights), (result,), attrs))
    return Replacement(made)


def _groups(found: Found, channels: int) -> int:
    """Return how many groups x is split into, after checking that nothing but groups is split."""
    shape, split = found.shape("x"), found.work.shape(found.node(grouped).outputs[0])
    node = found.node(grouped)
    if split is None or len(split) < 3 or split[0] != shape[0]:
        raise Miss(f"makes {text(split)} of {text(shape)}, want [batch, groups, ...]", node)
    groups = static(split[1], "the number of groups", node)
    for name, want in (("ones", 1.0), ("zeros", 0.0)):
        values = found.work.facts.value(found[name])
        if values is None or values.shape != (groups,) or any(v != want for v in values):
            raise Miss(f"{found[name].name} is not {groups} times {want:g}", found.node(unit))
    back = found.node(restored)
    if found.work.shape(back.outputs[0]) != shape:
        have = text(found.work.shape(back.outputs[0]))
        raise Miss(f"makes {have} of the groups, want x's {text(shape)}", back)
    return groups


def _of_channels(
    found: Found, name: str, channels: int, groups: int, made: list[NewNode]
) -> gs.Tensor:
    """Return a weight as [channels]; a node that reshapes it is added to ``made`` if need be."""
    tensor, work = found[name], found.work
    shape, reader = work.shape(tensor), found.reader(tensor)
    if work.dtype(tensor) not in FLOATS:
        raise Miss(f"{tensor.name} is not floating-point", reader)
    if found.has(whole):
        if work.opset >= PER_CHANNEL and shape == (channels,):
            return tensor
        if shape == (groups,) and isinstance(tensor, gs.Constant):
            repeated = np.repeat(load(tensor, work.base_dir), channels // groups)
            return work.constant(tensor, "per_channel", repeated)
        raise Miss(f"{tensor.name} has shape {text(shape)}, want ({channels})", reader)
    want = (channels,) + (1,) * (len(found.shape("x")) - 2)
    if shape not in (want, (1, *want)):
        raise Miss(f"{tensor.name} has shape {text(shape)}, want {text(want)}", reader)
    if isinstance(tensor, gs.Constant):
        return work.constant(tensor, "flat", load(tensor, work.base_dir).reshape(-1))
    flat = work.fresh(tensor, "flat")
    target = work.constant(tensor, "target", np.array([-1], np.int64))
    made.append(NewNode("Reshape", (tensor, target), (flat,), {}, ""))
    return flat


def _body(uses: Uses) -> str:
    return f"""
        zero = Constant<value_ints: ints = [0]>()
        one = Constant<value_ints: ints = [1]>()
        rest = Constant<value_ints: ints = [-1]>()
        groups0 = Constant<value_int: int = @num_groups>()
        groups = Reshape(groups0, one)
        channels = Shape(gamma)
        by_group = Concat<axis: int = 0>(zero, groups, rest)
        by_channel = Concat<axis: int = 0>(zero, channels, rest)
        shape = Shape(x)
        wide = Cast<to: int = 1>(x)
        grouped = Reshape(wide, by_group)
        {mean_last(uses.opset, "mean", "grouped")}
        centred = Sub(grouped, mean)
        square = Mul(centred, centred)
        {mean_last(uses.opset, "spread", "square")}
        epsilon = Constant<value_float: float = @epsilon>()
        variance = Add(spread, epsilon)
        root = Sqrt(variance)
        unit = Div(centred, root)
        split = Reshape(unit, by_channel)
        gamma_wide = Cast<to: int = 1>(gamma)
        beta_wide = Cast<to: int = 1>(beta)
        gamma_column = Unsqueeze(gamma_wide, one)
        beta_column = Unsqueeze(beta_wide, one)
        scaled = Mul(split, gamma_column)
        shifted = Add(scaled, beta_column)
        sigmoid = Sigmoid(shifted)
        active = Mul(shifted, sigmoid)
        whole = Reshape(active, shape)
        y = CastLike(whole, x)"""


DEFINITION = Definition(
    "GroupNormSilu",
    ("x", "gamma", "beta"),
    ("y",),
    ("num_groups", "epsilon"),
    _body,
    in_fp32=("gamma", "beta"),
)
FUSION = Fusion(
    "GroupNormSilu",
    ("Swish", "Mul"),
    y,
    _build,
    near=3,
    key="InstanceNormalization|GroupNormalization",
)
