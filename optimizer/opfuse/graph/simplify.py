"""One spelling for what exporters write in many ways; every rule keeps the numbers as they are.

A rule that needs a shape asks the symbolic analysis and does nothing where it is not certain.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from opfuse.graph import edit, folding, pairs, regroup
from opfuse.graph.dims import Dim
from opfuse.graph.edit import producer
from opfuse.graph.einsum import product
from opfuse.graph.rewriter import Rewriter, Rule
from opfuse.graph.softmax_forms import one_choice, taken_away, without_maximum, written_out
from opfuse.graph.unbatch import unbatch
from opfuse.graph.values import FLOATS, INTEGERS

_WIDER = {
    (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT),
    (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT),
}
_NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0, "Pow": 1.0}
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum")
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def beside_nothing(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A Concat of one part with empty ones, such as of what a head of size 16 has behind 16."""
    axis = int(node.attrs.get("axis", 0))
    shapes = [rewriter.shape(tensor) or () for tensor in node.inputs]
    pairs = zip(node.inputs, shapes, strict=True)
    filled = [tensor for tensor, shape in pairs if shape[axis:][:1] != (0,)]
    return filled[0] if len(filled) == 1 else None


def forward_first(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Identity, a Concat of one, and Dropout without its mask give what they take."""
    if node.op == "Concat" and len(node.inputs) != 1:
        return None
    if node.op == "Dropout" and (len(node.outputs) > 1 or len(node.inputs) > 2):
        return None
    return node.inputs[0]


def cast(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A Cast to the type that is there already, or back from a wider one."""
    source, facts = node.inputs[0], rewriter.facts
    to = _dtype_attribute(node)
    have = facts.dtype(source)
    if have is not None and have == to:
        return source
    inner = producer(source)
    if inner is not None and inner.op == "Cast":
        first = facts.dtype(inner.inputs[0])
        if first == to and (first, have) in _WIDER:
            return inner.inputs[0]
    return None


def cast_like(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A CastLike is a Cast to a known type, and does not read what it is like for its values."""
    source, facts = node.inputs[0], rewriter.facts
    to = facts.dtype(node.inputs[1])
    if to not in (*FLOATS, *INTEGERS, onnx.TensorProto.BFLOAT16):
        return None
    if facts.dtype(source) == to:
        return source
    return rewriter.emit("Cast", [source], {"to": to}, node.outputs[0])


def _dtype_attribute(node: gs.Node) -> int:
    to = node.attrs["to"]
    return (
        int(to) if isinstance(to, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))
    )


def neutral(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """X * 1, x / 1, x + 0, x - 0, x ** 1."""
    if len(node.inputs) != 2:
        return None
    left, right = node.inputs
    pairs = [(left, right)]
    if node.op in ("Mul", "Add"):
        pairs.append((right, left))
    for x, other in pairs:
        if rewriter.scalar(other) == _NEUTRAL[node.op] and _same(rewriter, x, node):
            return x
    return None


def logic(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """X and true, x or false."""
    want = 1.0 if node.op == "And" else 0.0
    for x, other in (node.inputs, node.inputs[::-1]):
        if rewriter.scalar(other) == want and _same(rewriter, x, node):
            return x
    return None


def _same(rewriter: Rewriter, x: gs.Tensor, node: gs.Node) -> bool:
    """Tell whether ``x`` has the shape and type of the node's output."""
    shape, facts = rewriter.shape(x), rewriter.facts
    return (
        shape is not None
        and shape == rewriter.out_shape(node)
        and facts.dtype(x) == facts.dtype(node.outputs[0])
    )


def same_shape(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """An Expand or a Slice that leaves everything as it is."""
    if node.op == "Slice" and len(node.inputs) > 4:
        steps = rewriter.integers(node.inputs[4])
        if steps is None or any(step != 1 for step in steps):
            return None
    return node.inputs[0] if _same(rewriter, node.inputs[0], node) else None


def view(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A view that ends in the shape in which the chain of views before it began."""
    shape = rewriter.out_shape(node)
    source = node.inputs[0]
    while shape is not None:
        if rewriter.shape(source) == shape:
            return source
        inner = producer(source)
        if inner is None or inner.op not in _VIEWS:
            return None
        source = inner.inputs[0]
    return None


def kept_axis(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A reduction that drops its axis, and an Unsqueeze that puts it back, is one that keeps it."""
    inner = producer(node.inputs[0])
    if inner is None or inner.op not in _REDUCTIONS or inner.attrs.get("keepdims", 1):
        return None
    shape = rewriter.shape(inner.inputs[0])
    axes, back = inner.attrs.get("axes"), rewriter.integers(node.inputs[1])
    if axes is None and len(inner.inputs) > 1:
        axes = rewriter.integers(inner.inputs[1])
    if shape is None or axes is None or back is None:
        return None
    if sorted(a % len(shape) for a in axes) != sorted(a % len(shape) for a in back) or not axes:
        return None
    attrs = {**inner.attrs, "keepdims": 1}
    return rewriter.emit(inner.op, list(inner.inputs), attrs, node.outputs[0])


def reshape(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Write the target of a Reshape as a constant, and reshape from as far back as possible."""
    out = rewriter.out_shape(node)
    if out is None:
        return None
    inner = producer(node.inputs[0])
    sources = [node.inputs[0]]
    if inner is not None and inner.op in _VIEWS:
        sources.insert(0, inner.inputs[0])
    for source in sources:
        target = reshape_target(rewriter.shape(source), out)
        if target is not None:
            _retarget(rewriter, node, source, target)
            return None
    return None


def reshape_target(have: tuple[Dim, ...] | None, want: tuple[Dim, ...]) -> list[int] | None:
    """Return a constant Reshape target, with 0 for a dimension kept and at most one -1."""
    if have is None:
        return None
    target: list[int] = []
    for index, dim in enumerate(want):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        else:
            target.append(0 if index < len(have) and have[index] == dim else -1)
    return target if target.count(-1) <= 1 else None


def _retarget(rewriter: Rewriter, node: gs.Node, source: gs.Tensor, target: list[int]) -> None:
    if source is not node.inputs[0]:
        edit.set_input(node, 0, source)
        rewriter.changed = True
    current = node.inputs[1]
    if isinstance(current, gs.Constant) and rewriter.integers(current) == target:
        node.attrs.pop("allowzero", None)
        return
    node.attrs.pop("allowzero", None)
    values = np.array(target, np.int64)
    edit.set_input(node, 1, rewriter.constant(node.outputs[0], values))
    rewriter.changed = True


def transpose(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A Transpose of a Transpose is one; one that moves nothing is none."""
    perm = node.attrs.get("perm")
    if perm is None:
        shape = rewriter.shape(node.inputs[0])
        if shape is None:
            return None
        perm = list(reversed(range(len(shape))))
        node.attrs["perm"] = perm
    inner = producer(node.inputs[0])
    if inner is not None and inner.op == "Transpose" and inner.attrs.get("perm") is not None:
        perm = [int(inner.attrs["perm"][axis]) for axis in perm]
        node.attrs["perm"] = perm
        edit.set_input(node, 0, inner.inputs[0])
        rewriter.changed = True
    if list(perm) == sorted(perm):
        return node.inputs[0]
    return _before_its_cast(rewriter, node)


def _before_its_cast(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Turn what is widened, not what came of it: the two meet behind k in GPT-J's attention."""
    widened = producer(node.inputs[0])
    if widened is None or widened.op != "Cast":
        return None
    if any(user is not node and user.op != "Shape" for user in node.inputs[0].outputs):
        return None
    source, facts = widened.inputs[0], rewriter.facts
    if (facts.dtype(source), facts.dtype(node.inputs[0])) not in _WIDER:
        return None
    turned = rewriter.emit("Transpose", [source], dict(node.attrs), node.outputs[0])
    return rewriter.emit("Cast", [turned], dict(widened.attrs), node.outputs[0])


def flat_transpose(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """[a, b, c, d] -> [a*b, c, d] -> [a*b, d, c] -> [a, b, d, c] is one Transpose.

    What was flattened may have been of yet another shape, such as the groups of repeated heads.
    """
    turn = producer(node.inputs[0])
    if turn is None or turn.op != "Transpose" or list(turn.attrs.get("perm", ())) != [0, 2, 1]:
        return None
    flatten = producer(turn.inputs[0])
    if flatten is None or flatten.op != "Reshape":
        return None
    source = flatten.inputs[0]
    flat, out = rewriter.shape(flatten.outputs[0]), rewriter.out_shape(node)
    if flat is None or out is None or len(out) != 4:
        return None
    a, b, d, c = out
    if flat != (a * b, c, d):
        return None
    whole = (a, b, c, d)
    if rewriter.shape(source) != whole:
        target = reshape_target(rewriter.shape(source), whole)
        if target is None:
            return None
        shape = rewriter.constant(node.outputs[0], np.array(target, np.int64))
        source = rewriter.emit("Reshape", [source, shape], {}, node.outputs[0])
    return rewriter.emit("Transpose", [source], {"perm": [0, 1, 3, 2]}, node.outputs[0])


def unflattened_linear(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """[..., k] -> [n, k] -> linear layer -> [n, m] -> [..., m] needs no reshaping."""
    layer, bias = producer(node.inputs[0]), None
    if layer is not None and layer.op == "Add":
        bias = next((t for t in layer.inputs if isinstance(t, gs.Constant)), None)
        rest = [t for t in layer.inputs if t is not bias]
        layer = producer(rest[0]) if bias is not None and len(bias.shape) == 1 else None
    if layer is None or layer.op != "MatMul" or not isinstance(layer.inputs[1], gs.Constant):
        return None
    flatten = producer(layer.inputs[0])
    if flatten is None or flatten.op != "Reshape" or len(layer.inputs[1].shape) != 2:
        return None
    source = flatten.inputs[0]
    have, out = rewriter.shape(source), rewriter.out_shape(node)
    rows, columns = layer.inputs[1].shape
    if have is None or out is None or have[-1] != rows or out != (*have[:-1], columns):
        return None
    result = rewriter.emit("MatMul", [source, layer.inputs[1]], {}, node.outputs[0])
    if bias is not None:
        result = rewriter.emit("Add", [result, bias], {}, node.outputs[0])
    return result


def gemm(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Gemm with factors of 1 is MatMul and Add."""
    attrs = node.attrs
    if attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
        return None
    weight = node.inputs[1]
    if attrs.get("transB", 0):
        turned = folding.turned_matrix(rewriter, weight)
        if turned is None:
            return None
        weight = turned
    out = rewriter.emit("MatMul", [node.inputs[0], weight], {}, node.outputs[0])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        out = rewriter.emit("Add", [out, node.inputs[2]], {}, node.outputs[0])
    return out


RULES: dict[str, tuple[Rule, ...]] = {
    "Identity": (forward_first,),
    "Dropout": (forward_first,),
    "Concat": (forward_first, beside_nothing, regroup.turned_pair),
    "Cast": (cast,),
    "CastLike": (cast_like,),
    **dict.fromkeys(_NEUTRAL, (neutral,)),
    "Div": (neutral, written_out),
    "Sub": (neutral, taken_away),
    "Softmax": (without_maximum,),
    "Where": (one_choice,),
    "Einsum": (product,),
    "And": (logic,),
    "Or": (logic,),
    "Expand": (same_shape,),
    "Slice": (same_shape, pairs.one_of_each_pair),
    "Gather": (pairs.one_of_each_pair,),
    "Split": (pairs.split_of_concat, folding.split),
    "Squeeze": (view,),
    "Unsqueeze": (view, kept_axis),
    "Flatten": (view,),
    "Reshape": (
        view,
        flat_transpose,
        unflattened_linear,
        unbatch,
        regroup.window_mask,
        regroup.split_scores,
        reshape,
    ),
    "Transpose": (transpose, folding.turned, regroup.turned_sum),
    "Gemm": (gemm,),
}
