"""Operators that onnxruntime's optimizer writes (com.microsoft), in standard operators again.

What they compute is what onnxruntime's CPU kernels do (ContribOperators.md says it in words). One
that has an attribute or an input which standard operators do not express stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from opfuse.graph import microsoft_attention, microsoft_gqa
from opfuse.graph.edit import producer
from opfuse.graph.expansion import Entry, Expansion, Results, Unclear
from opfuse.graph.microsoft_attention import last_dim
from opfuse.graph.rewriter import Rewriter, Rule

DOMAIN = "com.microsoft"
_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")


def gelu(e: Expansion, x: gs.Tensor) -> gs.Tensor:
    """Return x * Phi(x), by erf."""
    erf = e("Erf", e("Div", x, e.scalar(math.sqrt(2), x)))
    product = e("Mul", x, e("Add", erf, e.scalar(1.0, x)))
    return e("Mul", product, e.scalar(0.5, x))


def gelu_tanh(e: Expansion, x: gs.Tensor) -> gs.Tensor:
    """Return 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    cube = e("Pow", x, e.scalar(3.0, x))
    inner = e("Add", x, e("Mul", cube, e.scalar(0.044715, x)))
    tanh = e("Tanh", e("Mul", inner, e.scalar(math.sqrt(2 / math.pi), x)))
    half = e("Mul", x, e.scalar(0.5, x))
    return e("Mul", half, e("Add", tanh, e.scalar(1.0, x)))


def _biased(e: Expansion, x: gs.Tensor, index: int) -> gs.Tensor:
    bias = e.get(index)
    return x if bias is None else e("Add", x, bias)


def _gelu(e: Expansion) -> Results:
    return (gelu(e, _biased(e, e[0], 1)),)


def _fast_gelu(e: Expansion) -> Results:
    return (gelu_tanh(e, _biased(e, e[0], 1)),)


def _gemm_fast_gelu(e: Expansion) -> Results:
    return (gelu_tanh(e, _biased(e, e("MatMul", e[0], e[1]), 2)),)


def _quick_gelu(e: Expansion) -> Results:
    alpha, x = e.number("alpha", 1.702), e[0]
    inner = x if alpha == 1 else e("Mul", x, e.scalar(alpha, x))
    return (e("Mul", x, e("Sigmoid", inner)),)


def _bias_split_gelu(e: Expansion) -> Results:
    """The left half times the GELU of the right."""
    width = last_dim(e, e[1]) // 2
    x = e("Add", e[0], e[1])
    parts = [
        e("Slice", x, e.integers(start), e.integers(start + width), e.integers(-1))
        for start in (0, width)
    ]
    return (e("Mul", parts[0], gelu(e, parts[1])),)


def _bias_add(e: Expansion) -> Results:
    return (e("Add", e("Add", e[0], e[1]), e[2]),)


def _sum(e: Expansion, bias: int) -> gs.Tensor:
    """Input plus skip plus bias; a projection's bias goes with the projection."""
    x, skip = e[0], e[1]
    source = producer(skip)
    if source is not None and source.op in ("MatMul", "Gemm", "FusedMatMul"):
        x, skip = skip, x
    return e("Add", _biased(e, x, bias), skip)


def _skip_layer_norm(e: Expansion) -> Results:
    total = _sum(e, 4)
    weights = [tensor for tensor in (e[2], e.get(3)) if tensor is not None]
    y = e("LayerNormalization", total, *weights, axis=-1, epsilon=e.number("epsilon", 1e-12))
    return y, None, None, total


def _skip_rms_norm(e: Expansion) -> Results:
    total = _sum(e, 3)
    return _rms_norm(e, total, e[2], e.number("epsilon", 1e-12)), None, None, total


def _simplified_layer_norm(e: Expansion) -> Results:
    axis = e.integer("axis", -1)
    if axis != -1 and axis != len(e.shape(e[0])) - 1:
        raise Unclear(f"works along axis {axis}, want the last")
    if len(e.shape(e[1])) != 1:
        raise Unclear(f"{e[1].name} has rank {len(e.shape(e[1]))}, want 1")
    return (_rms_norm(e, e[0], e[1], e.number("epsilon", 1e-5)),)


def _rms_norm(e: Expansion, x: gs.Tensor, gamma: gs.Tensor, epsilon: float) -> gs.Tensor:
    """Computed in fp32 and rounded once."""
    dtype = e.dtype(x)
    wide, scale = (
        tensor if e.dtype(tensor) == TensorProto.FLOAT else e("Cast", tensor, to=TensorProto.FLOAT)
        for tensor in (x, gamma)
    )
    mean = e.mean_last(e("Mul", wide, wide))
    root = e("Sqrt", e("Add", mean, e.scalar(epsilon, wide)))
    y = e("Mul", e("Div", wide, root), scale)
    return y if dtype == TensorProto.FLOAT else e("Cast", y, to=dtype)


def _embed_layer_norm(e: Expansion) -> Results:
    """Words, positions, and segments looked up, added, and normalised."""
    total = e("Gather", e[2], e[0])
    if e.get(8) is not None:
        positions = e("Gather", e[3], e[8])
    else:
        count = e("Shape", e[0], start=1, end=2)
        positions = e("Slice", e[3], e.integers(0), count, e.integers(0))
    total = e("Add", total, positions)
    if e.get(1) is not None:
        total = e("Add", total, e("Gather", e[4], e[1]))
    y = e("LayerNormalization", total, e[5], e[6], axis=-1, epsilon=e.number("epsilon", 1e-12))
    return y, None, total


def _group_norm(e: Expansion) -> Results:
    """As torch exports it: groups are instances, with scale 1 and bias 0."""
    x, groups, rank = e[0], e.integer("groups"), len(e.shape(e[0]))
    channels = last_dim(e, e[1])
    last = bool(e.integer("channels_last", 1))
    if rank < 3 or groups < 1 or channels % groups:
        raise Unclear(f"{x.name} of rank {rank} has {channels} channels in {groups} groups")
    if last:
        x = e("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
    wide = x if e.dtype(x) == TensorProto.FLOAT else e("Cast", x, to=TensorProto.FLOAT)
    grouped = e("Reshape", wide, e.integers(0, groups, -1))
    ones, zeros = e.vector(1.0, groups), e.vector(0.0, groups)
    epsilon = e.number("epsilon", 1e-5)
    y = e("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    y = e("Reshape", y, e("Shape", x))
    axes = e.integers(*range(1, rank - 1))
    gamma, beta = (e("Unsqueeze", weight, axes) for weight in (e[1], e[2]))
    y = e("Add", e("Mul", y, gamma), beta)
    if wide is not x:
        y = e("Cast", y, to=e.dtype(x))
    if e.integer("activation"):
        y = e("Mul", y, e("Sigmoid", y))
    return (e("Transpose", y, perm=[0, *range(2, rank), 1]) if last else y,)


def _transposed(e: Expansion, tensor: gs.Tensor, flag: str) -> gs.Tensor:
    if not e.integer(flag):
        return tensor
    rank = len(e.shape(tensor))
    if rank < 2:
        return tensor
    return e("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


def _matmul(e: Expansion) -> Results:
    a, b = _transposed(e, e[0], "transA"), _transposed(e, e[1], "transB")
    y, alpha = e("MatMul", a, b), e.number("alpha", 1.0)
    return (y if alpha == 1 else e("Mul", y, e.scalar(alpha, y)),)


def _gemm(e: Expansion) -> Results:
    activation = str(e.node.attrs.get("activation", ""))
    if activation not in _ACTIVATIONS:
        raise Unclear(f"has the activation {activation!r}, want one of {', '.join(_ACTIVATIONS)}")
    names = ("alpha", "beta", "transA", "transB")
    attrs = {name: e.node.attrs[name] for name in names if name in e.node.attrs}
    y = e("Gemm", *e.node.inputs, **attrs)
    slope = {"alpha": e.number("activation_alpha", 0.01)} if activation == "LeakyRelu" else {}
    return (e(activation, y, **slope),)


_PRODUCT = Entry(
    "GemmAct",
    _matmul,
    ("alpha", "transA", "transB"),
    {"transBatchA": 0, "transBatchB": 0},
    inputs=2,
)
_RMS = Entry("RmsNorm", _simplified_layer_norm, ("epsilon", "axis"), {"stash_type": 1}, inputs=2)
_EPSILON = ("epsilon",)
ENTRIES = {
    "BiasAdd": Entry("AddLayerNorm", _bias_add, inputs=3),
    "BiasGelu": Entry("GemmAct", _gelu, inputs=2),
    "BiasSplitGelu": Entry("GatedAct", _bias_split_gelu, inputs=2),
    "EmbedLayerNormalization": Entry(
        "LayerNormalization",
        _embed_layer_norm,
        ("epsilon", "mask_index_type"),
        inputs=9,
        outputs=(0, 2),
    ),
    "FastGelu": Entry("GemmAct", _fast_gelu, inputs=2),
    "FusedGemm": Entry(
        "GemmAct",
        _gemm,
        ("activation", "activation_alpha", "alpha", "beta", "transA", "transB"),
        {"activation_beta": 0.0, "activation_gamma": 0.0},
        inputs=3,
    ),
    "FusedMatMul": _PRODUCT,
    "Gelu": Entry("Gelu", _gelu),
    "GemmFastGelu": Entry("GemmAct", _gemm_fast_gelu, inputs=3),
    "GroupNorm": Entry(
        "GroupNormSilu",
        _group_norm,
        ("activation", "channels_last", "epsilon", "groups"),
        inputs=3,
    ),
    "QuickGelu": Entry("GemmAct", _quick_gelu, ("alpha",)),
    "SimplifiedLayerNormalization": _RMS,
    "SkipLayerNormalization": Entry(
        "AddLayerNorm", _skip_layer_norm, _EPSILON, inputs=5, outputs=(0, 3)
    ),
    "SkipSimplifiedLayerNormalization": Entry(
        "AddRmsNorm", _skip_rms_norm, _EPSILON, inputs=4, outputs=(0, 3)
    ),
    "TransposeMatMul": _PRODUCT,
    **microsoft_attention.ENTRIES,
    **microsoft_gqa.ENTRIES,
}


def understood(domain: str, op: str) -> bool:
    """Tell whether there is a way to write this operator in standard ones."""
    return domain == DOMAIN and op in ENTRIES


@dataclass(frozen=True)
class Left:
    """A node that stays as it is: the kind that it could have been, and why it is not."""

    node: gs.Node
    kind: str
    reason: str


class Microsoft:
    """Takes these operators apart, and remembers which were left and why.

    onnxruntime writes SimplifiedLayerNormalization into the default domain.
    """

    def __init__(self) -> None:
        self._left: dict[int, Left] = {}

    @property
    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """The rules that take them apart, as a Rewriter finds them."""
        names = [f"{DOMAIN}.{op}" for op in ENTRIES]
        return dict.fromkeys((*names, "SimplifiedLayerNormalization"), (self._expand,))

    def left(self) -> tuple[Left, ...]:
        """Return what was left."""
        return tuple(self._left.values())

    def _expand(self, rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
        """Return what the first output of ``node`` holds, from standard operators before it."""
        entry = ENTRIES[node.op]
        try:
            results = entry.apply(rewriter, node)
        except Unclear as unclear:
            self._left[id(node)] = Left(node, entry.kind, unclear.reason)
            return None
        self._left.pop(id(node), None)
        rewriter.become_identities(node, *results)
        return results[0]
