"""Shape rules of matrix products and attention."""

from __future__ import annotations

from onnx import TensorProto

from opfuse.graph.dims import Dim, broadcast
from opfuse.graph.equation import written_out
from opfuse.graph.facts import Fact, Op, Rule, Shape, broadcast_shapes


def matmul_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape of ``a @ b`` as in NumPy, 1-D operands included."""
    if a is None or b is None:
        return None
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    batch = broadcast_shapes([left[:-2], right[:-2]])
    if batch is None:
        return None
    rows = () if len(a) == 1 else (left[-2],)
    cols = () if len(b) == 1 else (right[-1],)
    return (*batch, *rows, *cols)


def _matmul(op: Op) -> Fact:
    return Fact(matmul_shape(op.shape(), op.shape(1)), op.dtype())


def _matmul_integer(op: Op) -> Fact:
    return Fact(matmul_shape(op.shape(), op.shape(1)), int(TensorProto.INT32))


def _gemm(op: Op) -> Fact:
    a, b = op.shape(), op.shape(1)
    rows: Dim = a[1 if op.attr("transA", 0) else 0] if a else op.unknown_dim()
    cols: Dim = b[0 if op.attr("transB", 0) else 1] if b else op.unknown_dim()
    return Fact((rows, cols), op.dtype())


def _einsum(op: Op) -> Fact:
    shapes = [op.shape(index) for index in range(len(op.node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    found = written_out(str(op.attr("equation")), [len(shape) for shape in known])
    if found is None:
        return Fact(None, op.dtype())
    terms, out = found
    sizes: dict[str, Dim] = {}
    for term, shape in zip(terms, known, strict=True):
        for label, dim in zip(term, shape, strict=True):
            sizes[label] = broadcast(sizes[label], dim) if label in sizes else dim
    return Fact(tuple(sizes[label] for label in out), op.dtype())


def _attention(op: Op) -> tuple[Fact, ...]:
    """Opset 23 and later; q, k, v are [batch, seq, hidden] or [batch, heads, seq, head]."""
    q, k, v, dtype = op.shape(), op.shape(1), op.shape(2), op.dtype()
    if q is None or k is None or v is None:
        return (Fact(None, dtype),) * len(op.node.outputs)
    packed = len(q) == 3
    if packed:
        heads, kv_heads = int(op.attr("q_num_heads")), int(op.attr("kv_num_heads"))
        q, k, v = _by_head(q, heads), _by_head(k, kv_heads), _by_head(v, kv_heads)
    past = op.shape(4)
    total = k[2] + past[2] if past is not None else k[2]
    y = (q[0], q[2], q[1] * v[3]) if packed else (q[0], q[1], q[2], v[3])
    return (
        Fact(y, dtype),
        Fact((k[0], k[1], total, k[3]), op.dtype(1)),
        Fact((v[0], v[1], total, v[3]), op.dtype(2)),
        Fact((q[0], q[1], q[2], total), dtype),
    )


def _by_head(shape: Shape, heads: int) -> Shape:
    batch, rows, hidden = shape
    return batch, heads, rows, hidden // heads


RULES: dict[str, Rule] = {
    "Attention": _attention,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
}
