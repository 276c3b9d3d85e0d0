"""Questions that several rooms ask of a match before they accept it."""

from __future__ import annotations

import math

import onnx
import onnx_graphsurgeon as gs

from opfuse.graph.dims import Dim, is_opaque, never_equal
from opfuse.graph.edit import producer
from opfuse.graph.fusion import Decline, Found, Miss, NewNode, Work
from opfuse.graph.pattern import Op
from opfuse.graph.protos import HALVES
from opfuse.graph.weights import load

FLOATS = (onnx.TensorProto.FLOAT, *HALVES)


def floating(found: Found, *names: str) -> int:
    """Return the one floating-point type of the named tensors.

    Raises:
        Miss: They differ, or are not fp32, fp16, or bf16.
    """
    types = {found.work.dtype(found[name]) for name in names}
    if len(types) != 1:
        raise Miss(f"{', '.join(names)} differ in type", found.anchor)
    (dtype,) = types
    if dtype is None:
        raise Miss(f"the type of {names[0]} is not known", found.anchor)
    if dtype not in FLOATS:
        raise Miss(f"{names[0]} is neither fp32, fp16, nor bf16", found.anchor)
    return dtype


def same_type(found: Found, tensor: gs.Tensor, dtype: int) -> None:
    """Refuse a result of another type than the input's."""
    if found.work.dtype(tensor) != dtype:
        raise Miss(f"{tensor.name} has another type than its input", found.anchor)


def cast_to(
    work: Work, tensor: gs.Tensor, suffix: str, dtype: int | None, made: list[NewNode]
) -> gs.Tensor:
    """Return ``tensor`` in type ``dtype``: itself where it has it, else by a Cast in ``made``."""
    if work.dtype(tensor) == dtype:
        return tensor
    cast = work.fresh(tensor, suffix, dtype)
    made.append(NewNode("Cast", (tensor,), (cast,), {"to": dtype}, ""))
    return cast


def own_type(found: Found, dtype: int) -> None:
    """Refuse a match whose result has another type than ``dtype``, its input's.

    Raises:
        Decline: A Cast reads it, and the match that ends there decides.
        Miss: None does.
    """
    (result, *_) = found.anchor.outputs
    cast_behind = any(user.op == "Cast" for user in result.outputs)
    if found.work.dtype(result) != dtype and found.anchor.op != "Cast" and cast_behind:
        raise Decline("the Cast behind it decides")
    same_type(found, result, dtype)


def known_casts(found: Found) -> None:
    """Refuse a Cast to a type with other limits than fp32: fp64 holds what overflows there."""
    for node in found.nodes:
        if node.op == "Cast" and found.work.dtype(node.outputs[0]) not in FLOATS:
            raise Miss("casts to another type than fp32, fp16, or bf16", node)


def equals(found: Found, name: str, want: float) -> None:
    """Refuse a constant with another value; 0.5, 1, 2, 3 are exact in every type."""
    if found.has(name):
        value = found.scalar(name)
        if value != want and (want * 2 == round(want * 2) or not is_close(found, name, want)):
            reason = f"constant {found[name].name} is {value:g}, want {want:g}"
            raise Miss(reason, found.reader(found[name]))


def is_close(found: Found, name: str, want: float) -> bool:
    """Tell whether a constant is ``want`` as its type rounds it, or as it is written in sources.

    1.4142 stands for the root of 2 in fp32 models, 1e-5 away.
    """
    rounding: dict[int, float] = {onnx.TensorProto.FLOAT16: 1e-3, onnx.TensorProto.BFLOAT16: 4e-3}
    dtype = found.work.dtype(found[name])
    tolerance = 2e-5 if dtype is None else rounding.get(dtype, 2e-5)
    return math.isclose(found.scalar(name), want, rel_tol=tolerance)


def scale_of(found: Found, *names: str) -> float:
    """Return the product of what patterns ``scaled`` multiply with and divide by; inf over 0."""
    scale = 1.0
    for name in names:
        if found.has(f"{name}_times"):
            scale *= found.scalar(f"{name}_times")
        if found.has(f"{name}_over"):
            over = found.scalar(f"{name}_over")
            scale = scale / over if over else math.inf
    return scale


def axes_of(work: Work, node: gs.Node) -> list[int] | None:
    """Return the axes of a Reduce node, from its attribute or its input; None where unknown."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return None
    values = work.facts.value(node.inputs[1])
    axes = [] if values is None else list(values.reshape(-1))
    known = values is not None and all(isinstance(axis, int) for axis in axes)
    return axes if known else None


def reduces_last(work: Work, node: gs.Node, rank: int) -> None:
    """Refuse a reduction over anything but the last axis, or one that drops it."""
    axes = axes_of(work, node)
    if axes is None or [axis % rank for axis in axes] != [rank - 1]:
        raise Miss(f"reduces over axes {axes}, want the last of {rank}", node)
    if not node.attrs.get("keepdims", 1):
        raise Miss("drops the axis that it reduces", node)


def last_axis(node: gs.Node, rank: int, default: int = -1) -> None:
    """Refuse a node whose ``axis`` is not the last."""
    axis = int(node.attrs.get("axis", default))
    if axis % rank != rank - 1:
        raise Miss(f"works along axis {axis}, want the last of {rank}", node)


def for_other_weights(found: Found, scaled: Op) -> tuple[gs.Node, ...]:
    """Return the node before a norm's weight, where all that read it are such products.

    Norms of one tensor with weights of their own share their statistics once equal computations are
    done once.
    """
    if not found.has(scaled):
        return ()
    unit = next(t for t in found.node(scaled).inputs if t is not found["gamma"])
    node = producer(unit)
    alone = node is None or found.work.is_output(unit) or any(u.op != "Mul" for u in unit.outputs)
    return () if alone or node is None else (node,)


def vector(found: Found, name: str, length: Dim, dtype: int) -> gs.Tensor:
    """Return weight ``name`` as a tensor of shape (length,) and of ``dtype`` or fp32.

    Leading dimensions of 1 are dropped from a constant.

    Raises:
        Miss: It has another shape or type.
        Decline: It is computed for each batch, or one number: a modulation or a factor, and the
            norm before it has no weights.
    """
    tensor, work = found[name], found.work
    shape = work.shape(tensor)
    if name == "gamma" and shape == ():
        raise Decline("is a factor of all")
    if not isinstance(tensor, gs.Constant) and shape is not None and len(shape) > 1:
        raise Decline(f"{tensor.name} modulates a norm without weights")
    if work.dtype(tensor) not in (dtype, onnx.TensorProto.FLOAT):
        reason = f"{tensor.name} is neither of the input's type nor fp32"
        raise Miss(reason, found.reader(found[name]))
    if shape == (length,):
        return tensor
    row = shape is not None and shape[-1:] == (length,) and all(dim == 1 for dim in shape[:-1])
    if row and isinstance(tensor, gs.Constant):
        return work.constant(tensor, "flat", load(tensor, work.base_dir).reshape(-1))
    reason = f"{tensor.name} has shape {text(shape)}, want ({length})"
    raise Miss(reason, found.reader(found[name]))


def same_shape(found: Found, first: str, second: str) -> tuple[Dim, ...]:
    """Return the shape that two tensors share.

    Raises:
        Decline: They differ: one is broadcast, as a bias is. A size that follows from others in
            two ways may still be one; should it not be, the plugin refuses the shapes as it runs.
    """
    a, b = found.work.shape(found[first]), found.work.shape(found[second])
    if a is None or b is None or len(a) != len(b) or not all(map(_one_size, a, b)):
        raise Decline(f"{first} {text(a)} and {second} {text(b)}")
    return a


def _one_size(a: Dim, b: Dim) -> bool:
    derived = is_opaque(a) or is_opaque(b)  # two names of inputs' sizes are two sizes
    return a == b or (derived and may_equal(a, b))


def broadcasts(shape: tuple[Dim, ...], target: tuple[Dim, ...]) -> bool:
    """Tell whether ``shape`` provably broadcasts to ``target`` without enlarging it."""
    padded = (1,) * (len(target) - len(shape)) + tuple(shape)
    return len(shape) <= len(target) and all(
        dim == 1 or dim == want for dim, want in zip(padded, target, strict=True)
    )


def may_equal(a: Dim, b: Dim) -> bool:
    """Tell whether two sizes can be one; a known 1 beside a symbol is a broadcast, not an equal."""
    if a == b:
        return True
    constant = isinstance(a, int) and isinstance(b, int)
    return not constant and 1 not in (a, b) and not never_equal(a, b)


def may_broadcast(shape: tuple[Dim, ...], target: tuple[Dim, ...]) -> bool:
    """Tell whether ``shape`` can broadcast to ``target`` without enlarging it.

    Two symbols may stand for one size; where they do not, the original fails as well.
    """
    padded = (1,) * (len(target) - len(shape)) + tuple(shape)
    return len(shape) <= len(target) and all(
        dim == 1 or may_equal(dim, want) for dim, want in zip(padded, target, strict=True)
    )


def static(dim: Dim, what: str, node: gs.Node) -> int:
    """Return a dimension that must be a number.

    Raises:
        Miss: It is symbolic.
    """
    if not isinstance(dim, int):
        raise Miss(f"{what} is {dim}, want a number; export with a fixed one", node)
    return dim


def text(shape: tuple[Dim, ...] | None) -> str:
    """Return a shape as messages write it."""
    return "of unknown rank" if shape is None else f"({', '.join(str(dim) for dim in shape)})"
