"""Constants computed ahead of time, and equal computations done once."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from opfuse.graph import edit
from opfuse.graph.rewriter import Rewriter, numpy_dtype
from opfuse.graph.values import content
from opfuse.graph.weights import MatrixValues

MAX_ELEMENTS = 1 << 16  # of a folded result; a larger one would only make the file larger
_MAX_REDUCED = 1 << 23  # of what a folded sum reads, as the norm of a convolution's weights
_BFLOAT16 = onnx.TensorProto.BFLOAT16
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")
# Rounded correctly by every processor, or no arithmetic at all.
_EXACT = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal"}
    | {"Expand", "Flatten", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mul"}
    | {"Neg", "Not", "Or", "Range", "Reciprocal", "Relu", "Reshape", "Sign", "Slice", "Sqrt"}
    | {"Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
# NumPy's last bit of these hangs on the vector instructions that the processor has (AVX-512's Pow
# differs from AVX2's), so they are computed in double precision and rounded once.
_INEXACT = frozenset(
    {"Cos", "Erf", "Exp", "Log", "Pow", "ReduceL2", "ReduceSum", "Sigmoid", "Sin", "Softplus"}
    | {"Tanh"}
)

# Each value of what they give comes from one value of the one tensor that they take.
_EACH = frozenset(
    {"Abs", "Cast", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Not", "Reciprocal"}
    | {"Relu", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Tanh"}
)


def known(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Replace what the shape analysis knows to be constant integers or booleans."""
    if len(node.outputs) != 1 or node.op == "Constant":
        return None
    value = rewriter.facts.value(node.outputs[0])
    dtype = numpy_dtype(rewriter.facts.dtype(node.outputs[0]))
    if value is None or dtype is None or dtype.kind not in "iub":
        return None
    if not all(isinstance(item, int) for item in value.ravel()):
        return None
    return rewriter.constant(node.outputs[0], np.array(value.tolist(), dtype).reshape(value.shape))


def constant_node(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A Constant node is an initializer."""
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return gs.Constant(rewriter.name(f"{node.outputs[0].name}/constant"), value._values)
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    for name, dtype in kinds.items():
        if name in node.attrs and not isinstance(node.attrs[name], gs.Node.AttributeRef):
            return rewriter.constant(node.outputs[0], np.array(node.attrs[name], dtype))
    return None


def computable(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Compute a node whose inputs are all small constants."""
    if len(node.outputs) != 1 or not node.inputs or any(edit.subgraphs(node)):
        return None
    foldable = node.op in _EXACT or (node.op in _INEXACT and _is_float(rewriter, node))
    most = _MAX_REDUCED if node.op.startswith("Reduce") else MAX_ELEMENTS
    if not foldable or not all(_small(tensor, most) or tensor.is_empty() for tensor in node.inputs):
        return None
    shape = rewriter.out_shape(node)
    sizes = [dim for dim in shape or () if isinstance(dim, int)]
    if shape is None or len(sizes) != len(shape) or prod(sizes) > MAX_ELEMENTS:
        return None
    result = _evaluate(rewriter, node)
    return None if result is None else rewriter.constant(node.outputs[0], result)


def of_copies(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Compute of a constant what is computed of copies of it, and copy that.

    Exporters write angles of positions that are known for a batch that is not.
    """
    copies = edit.producer(node.inputs[0]) if node.op in _EACH and node.inputs else None
    if copies is None or copies.op != "Expand" or not _small(copies.inputs[0]):
        return None
    once = rewriter.emit(node.op, [copies.inputs[0]], node.attrs, node.outputs[0])
    return rewriter.emit("Expand", [once, copies.inputs[1]], {}, node.outputs[0])


def split(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """Cut a small constant into the parts that a Split gives."""
    source = node.inputs[0]
    shapes = [rewriter.shape(tensor) for tensor in node.outputs]
    if not isinstance(source, gs.Constant) or not _small(source, halves=True) or None in shapes:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(source.shape)
    sizes = [shape[axis] for shape in shapes if shape is not None]
    ends = np.cumsum([size for size in sizes if isinstance(size, int)])
    if len(ends) != len(sizes) or ends[-1] != source.shape[axis]:
        return None
    parts = np.split(content(source), ends[:-1], axis)
    pieces = zip(node.outputs, parts, strict=True)
    rewriter.become_identities(node, *(rewriter.constant(t, part) for t, part in pieces))
    return None


def _is_float(rewriter: Rewriter, node: gs.Node) -> bool:
    dtype = numpy_dtype(rewriter.facts.dtype(node.outputs[0]))
    return dtype is not None and dtype.kind == "f"


def _small(tensor: gs.Tensor, most: int = MAX_ELEMENTS, *, halves: bool = False) -> bool:
    """Tell whether a constant is small, and of a type that NumPy has, or with ``halves`` bf16."""
    return (
        isinstance(tensor, gs.Constant)
        and (not isinstance(tensor.dtype, int) or (halves and tensor.dtype == _BFLOAT16))
        and prod(tensor.shape) <= most
        and not getattr(getattr(tensor._values, "tensor", None), "external_data", ())
    )


def _evaluate(rewriter: Rewriter, node: gs.Node) -> np.ndarray | None:
    from onnx.reference import ReferenceEvaluator

    proto = OnnxExporter.export_node(node)
    names = ["" if t.is_empty() else f"i{number}" for number, t in enumerate(node.inputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.append("o")
    given = zip(names, node.inputs, strict=True)
    values = {name: _precise(node, tensor.values) for name, tensor in given if name}
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in values.items()
    ]
    out = onnx.helper.make_tensor_value_info("o", rewriter.facts.dtype(node.outputs[0]) or 1, None)
    graph = onnx.helper.make_graph([proto], "fold", infos, [out])
    opset = [onnx.helper.make_opsetid("", rewriter.graph.opset)]
    try:
        model = onnx.helper.make_model(graph, opset_imports=opset)
        (result,) = ReferenceEvaluator(model).run(None, values)
    except Exception:  # the reference evaluator raises anything; the node then simply stays
        return None
    want = numpy_dtype(rewriter.facts.dtype(node.outputs[0]))
    result = np.asarray(result)
    if want is not None and node.op in _INEXACT:
        with np.errstate(over="ignore", under="ignore"):
            result = result.astype(want)
    return result if want is None or result.dtype == want else None


def turned(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """A Transpose of a matrix is another weight, of any size: no second copy is kept."""
    order = node.attrs.get("perm", [1, 0])
    return turned_matrix(rewriter, node.inputs[0]) if list(order) == [1, 0] else None


def turned_matrix(rewriter: Rewriter, weight: gs.Tensor) -> gs.Constant | None:
    """Return the transpose of a constant that only one node reads, or None.

    Those in a file stay there until the model is written.
    """
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
        return None
    if len({id(user) for user in weight.outputs}) != 1 or rewriter.is_needed(weight):
        return None
    values = MatrixValues(weight, rewriter.base_dir)
    kept = weight.data_location is None  # in memory
    return rewriter.constant(weight, values.load() if kept else values)


def _precise(node: gs.Node, values: np.ndarray) -> np.ndarray:
    """The values in which ``node`` is to be computed."""
    return values.astype(np.float64) if node.op in _INEXACT and values.dtype.kind == "f" else values


class Common:
    """Finds the first of several equal computations."""

    def __init__(self) -> None:
        self._first: dict[Hashable, gs.Tensor] = {}
        self._content: dict[int, tuple[gs.Constant, object]] = {}

    def __call__(self, rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
        """Return the output of the equal node that came first, if there is one."""
        if len(node.outputs) != 1 or node.op.startswith(_RANDOM) or any(edit.subgraphs(node)):
            return None
        attrs = tuple(sorted((name, _hashable(value)) for name, value in node.attrs.items()))
        inputs = tuple(self._identity(tensor) for tensor in node.inputs)
        first = self._first.setdefault((node.op, attrs, inputs), node.outputs[0])
        return None if first is node.outputs[0] else first

    def _identity(self, tensor: gs.Tensor) -> object:
        if not isinstance(tensor, gs.Constant) or not _small(tensor):
            return "" if tensor.is_empty() else id(tensor)
        if prod(tensor.shape) > 64:
            return id(tensor)
        if id(tensor) not in self._content:
            key = (str(tensor.dtype), tuple(tensor.shape), tensor.values.tobytes())
            self._content[id(tensor)] = tensor, key
        return self._content[id(tensor)][1]


def _hashable(value: object) -> object:
    if isinstance(value, gs.Constant):
        return (str(value.dtype), tuple(value.shape), content(value).tobytes())
    return tuple(value) if isinstance(value, list) else value
