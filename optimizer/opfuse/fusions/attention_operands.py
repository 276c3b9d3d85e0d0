"""q, k, v, and the mask of an attention, in the layout that FlashAttention takes them in."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions.guards import FLOATS, cast_to, may_broadcast, static, text
from opfuse.fusions.repeat_kv import unrepeat
from opfuse.graph import weights
from opfuse.graph.edit import maker, producer
from opfuse.graph.facts import Shape
from opfuse.graph.fusion import Found, Miss, NewNode

REACHABLE = -6e4  # scores above this may compete with a finite fill
_ABSORBS = -1e30  # in fp32 and bf16 a score that is added to this is lost
_STRETCH = 5.19e33  # the lowest number of fp32 over that of fp16, rounded towards zero
_PARTS = frozenset({"Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Cast", "Expand"})
_LARGEST = 1 << 24  # elements of a constant that are looked through
_STEP = 32.0  # between numbers of fp16 that low


def key_of(
    found: Found, kt: gs.Tensor, rank: int, made: list[NewNode]
) -> tuple[gs.Tensor, list[gs.Node]]:
    """Return k, whose transpose is ``kt``, and the Transpose that is no longer needed.

    A Transpose that makes k from what ``kt`` was made from is added to ``made`` if there has to be
    one.
    """
    swap = (*range(rank - 2), rank - 1, rank - 2)
    node = maker(kt)
    perm = () if node is None or node.op != "Transpose" else tuple(node.attrs.get("perm", ()))
    if node is None or len(perm) != rank:
        source, turn, taken = kt, swap, []
    else:
        source, turn, taken = node.inputs[0], tuple(int(perm[axis]) for axis in swap), [node]
    if turn == tuple(range(rank)):
        return source, taken
    key = found.work.fresh(source, "keys")
    made.append(NewNode("Transpose", (source,), (key,), {"perm": list(turn)}, ""))
    return key, taken


def without_copies(
    found: Found, key: gs.Tensor, value: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor, list[gs.Node]]:
    """Return k and v before they were copied for their groups, and the nodes that copy them."""
    few_keys, copies = unrepeat(found.work, key)
    few_values, value_copies = unrepeat(found.work, value)
    if not copies or not value_copies:
        return key, value, []
    if heads_of(found, few_keys) != heads_of(found, few_values):
        return key, value, []
    return few_keys, few_values, copies + value_copies


def heads_of(found: Found, tensor: gs.Tensor) -> int:
    """Return how many heads a [batch, heads, keys, head_size] tensor has.

    Raises:
        Miss: That is not known, or the rank is another.
    """
    shape = found.work.shape(tensor)
    if shape is None or len(shape) != 4:
        raise Miss(f"{tensor.name} is {text(shape)}, want rank 4", found.anchor)
    return static(shape[1], "the number of key/value heads", found.anchor)


def query_of(found: Found, made: list[NewNode]) -> gs.Tensor:
    """Return q, times what the scores of each head are multiplied with, as Swin 2 does.

    Raises:
        Miss: That differs between queries or keys.
    """
    query = found["q"]
    if not found.has("by_head"):
        return query
    factor, shape = found["by_head"], found.work.shape(found["by_head"])
    rank = len(found.shape("q"))
    if shape is None or not 3 <= len(shape) <= rank or any(dim != 1 for dim in shape[-2:]):
        reason = f"scores are multiplied by {factor.name}, {text(shape)}: no scale of each head"
        raise Miss(reason, producer(factor) or found.reader(factor))
    out = found.work.fresh(query, "by_head")
    made.append(NewNode("Mul", (query, factor), (out,), {}, ""))
    return out


def mask_of(found: Found, space: Shape, made: list[NewNode]) -> tuple[gs.Tensor, ...]:
    """Return the additive mask, or nothing; nodes that compute it are added to ``made``.

    Raises:
        Miss: It does not provably broadcast to ``space``, the shape of the scores.
    """
    mask = _added(found, space, made)
    if not found.has("floor"):
        return () if mask is None else (mask,)
    floor = found["floor"]
    element = found.work.dtype(floor) or onnx.TensorProto.UNDEFINED
    known = element in FLOATS
    lowest = float(_lowest(onnx.helper.tensor_dtype_to_np_dtype(element))) if known else 0.0
    if mask is None or not known or found.scalar("floor") != lowest or _has_ceiling(found):
        raise Miss("clamps the scores", found.reader(floor))
    # Only what the mask hides is that low, and in fp32 and bf16 only -inf in the mask.
    raised = found.work.fresh(mask, "raised")
    made.append(NewNode("Max", (mask, floor), (raised,), {}, ""))
    return (_widened(found, raised, made) if element == onnx.TensorProto.FLOAT16 else raised,)


def _has_ceiling(found: Found) -> bool:
    node = found.reader(found["floor"])
    return node.op == "Clip" and (len(node.inputs) > 2 and not node.inputs[2].is_empty())


def _added(found: Found, space: Shape, made: list[NewNode]) -> gs.Tensor | None:
    """Return what is added to the scores, or stands for what fills them, or None."""
    added = [found[name] for name in ("first_bias", "bias", "mask") if found.has(name)]
    for tensor in added:
        fits(found, tensor, space)
        if found.work.dtype(tensor) not in FLOATS:
            reason = f"mask {tensor.name} is not floating-point"
            raise Miss(reason, producer(tensor) or found.reader(tensor))
    if not found.has("fill"):
        return _sum(found, added, made)
    mask = found["mask"] if found.has("mask") else None
    before = _sum(found, [tensor for tensor in added if tensor is not mask], made)
    if not added:
        return _filled(found, space, None, made)
    if len(space) == 4 and known_biases(found) is not None:
        return _filled(found, space, before, made)
    return _filled_beside(found, space, before, mask, made)


def _sum(found: Found, tensors: Sequence[gs.Tensor], made: list[NewNode]) -> gs.Tensor | None:
    total = next(iter(tensors), None)
    for tensor in tensors[1:]:
        out = found.work.fresh(tensor, "with_bias")
        made.append(NewNode("Add", (total, tensor), (out,), {}, ""))
        total = out
    return total


def _choice(found: Found, space: Shape) -> tuple[gs.Tensor, float]:
    """Return what chooses between scores and fill, and the fill."""
    choice = found["keep" if found.has("keep") else "drop"]
    fits(found, choice, space)
    value = found.scalar("fill")
    if found.has("again"):  # so that a row which is masked as a whole gives 0
        value = -np.inf if value <= REACHABLE else value
    if value > REACHABLE:
        raise Miss(f"masks with {value:g}, which scores may reach", found.reader(found["fill"]))
    return choice, value


def known_biases(found: Found) -> list[gs.Node] | None:
    """Return what takes all that is added to filled scores out of constants that hide no key.

    None where one may hide keys too, or is added behind the fill. ALiBi's slopes are a constant of
    which a part is taken. Half of what scores may reach is allowed, for there may be two.
    """
    added = [found[name] for name in ("first_bias", "bias") if found.has(name)]
    if not added or found.has("mask"):
        return None
    nodes: list[gs.Node] = []
    for source in added:
        while not isinstance(source, gs.Constant):
            node = producer(source)
            if node is None or node.op not in _PARTS:
                return None
            nodes.append(node)
            source = node.inputs[0]
        if prod(source.shape) > _LARGEST or found.work.dtype(source) not in FLOATS:
            return None
        values = np.asarray(weights.load(source, found.work.base_dir), np.float64)
        if not (values > REACHABLE / 2).all():
            return None
    return nodes


def _filled(found: Found, space: Shape, before: gs.Tensor | None, made: list[NewNode]) -> gs.Tensor:
    """Turn where(keep, scores + before, fill) into scores + where(keep, before, lowest).

    The two agree where the lowest number of the type, which stands for any finite fill, absorbs the
    scores, so that a fully masked row weighs all keys alike. That of fp16 does not, so there the
    mask is in fp32.
    """
    choice, value = _choice(found, space)
    element = found.work.dtype(found["fill"]) or onnx.TensorProto.FLOAT
    if element == onnx.TensorProto.FLOAT16 and np.isfinite(value):
        element = onnx.TensorProto.FLOAT
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    fill = _fill(found, value, dtype)
    if np.isfinite(value):
        fill = found.work.constant(fill, "lowest", _lowest(dtype))
    if before is None:
        before = found.work.constant(found["fill"], "zero", np.zeros((), dtype))
    else:
        before = cast_to(found.work, before, "wide", element, made)
    return _where(found, choice, before, fill, made)


def _fill(found: Found, value: float, dtype: np.dtype[Any]) -> gs.Tensor:
    """Return the constant that masks: the model's own, unless -inf stands for it."""
    if value == found.scalar("fill"):
        return found["fill"]
    return found.work.constant(found["fill"], "minus_inf", np.array(value, dtype))


def _filled_beside(
    found: Found,
    space: Shape,
    before: gs.Tensor | None,
    mask: gs.Tensor | None,
    made: list[NewNode],
) -> gs.Tensor:
    """Turn where(keep, scores + before, fill) + mask into scores + one mask.

    What stands beside the fill masks too, and a row may be masked by the two together. Then only a
    fill that takes up the scores, or the lowest number, gives what the original gave.
    """
    choice, value = _choice(found, space)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(found.work.dtype(found["fill"]) or 1)
    absorbs = value <= _ABSORBS and dtype != np.float16
    if np.isfinite(value) and not absorbs and value != float(_lowest(dtype)):
        reason = f"masks with {value:g} beside another mask, which may be lower"
        raise Miss(reason, found.reader(found["fill"]))
    if before is None:
        before = found.work.constant(found["fill"], "zero", np.zeros((), dtype))
    total = _where(found, choice, before, _fill(found, value, dtype), made)
    if mask is not None:
        both = found.work.fresh(total, "with_mask")
        made.append(NewNode("Add", (total, mask), (both,), {}, ""))
        total = both
    if np.isfinite(value) and dtype == np.float16:
        return _widened(found, total, made)
    return total


def _where(
    found: Found, choice: gs.Tensor, seen: gs.Tensor, fill: gs.Tensor, made: list[NewNode]
) -> gs.Tensor:
    mask = found.work.fresh(fill, "mask", found.work.dtype(fill))
    order = (choice, seen, fill) if found.has("keep") else (choice, fill, seen)
    made.append(NewNode("Where", order, (mask,), {}, ""))
    return mask


def _widened(found: Found, mask: gs.Tensor, made: list[NewNode]) -> gs.Tensor:
    """Return an fp16 mask in fp32, what masks in it as near to the lowest number as it was.

    It is rounded once more to numbers that fp16 has: what computes the sums that made it in fp32,
    as onnxruntime does, would have small differences stretched too.
    """
    work, wide = found.work, onnx.TensorProto.FLOAT
    names = ("wide", "steps", "whole_steps", "far", "stretched")
    cast, steps, whole, far, out = (work.fresh(mask, name, wide) for name in names)
    masks = work.fresh(mask, "masks", onnx.TensorProto.BOOL)
    numbers = ("limit", REACHABLE), ("step", _STEP), ("factor", _STRETCH * _STEP)
    limit, step, factor = (work.constant(mask, n, np.array(x, np.float32)) for n, x in numbers)
    made.append(NewNode("Cast", (mask,), (cast,), {"to": wide}, ""))
    made.append(NewNode("LessOrEqual", (cast, limit), (masks,), {}, ""))
    made.append(NewNode("Div", (cast, step), (steps,), {}, ""))
    made.append(NewNode("Round", (steps,), (whole,), {}, ""))
    made.append(NewNode("Mul", (whole, factor), (far,), {}, ""))
    made.append(NewNode("Where", (masks, far, cast), (out,), {}, ""))
    return out


def _lowest(dtype: np.dtype[Any]) -> np.ndarray:
    return np.asarray(np.nextafter(np.array(-np.inf, dtype), np.zeros((), dtype)))


def fits(found: Found, tensor: gs.Tensor, space: Shape) -> None:
    """Refuse a mask that does not provably broadcast to the scores' shape."""
    shape = found.work.shape(tensor)
    if shape is None or not may_broadcast(shape, space):
        raise Miss(
            f"mask {tensor.name} is {text(shape)}, which does not provably broadcast to the "
            f"scores' {text(space)}",
            producer(tensor) or found.reader(tensor),
        )
