"""Which standard operators compute in the low type, in fp32, or as their neighbours do."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

# What an engine's time goes to; products accumulate in fp32 whatever their inputs are.
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"})

_GROWS = "its result grows or shrinks much faster than its input"
_EXPONENTIALS = "exponentials and their sum"
_SUMS = "adds up long rows"
_SCALE = "scales of a quantisation are fp32"
_STEPS = "its errors add up over the steps"

IN_FP32 = {
    **dict.fromkeys(("Exp", "Log", "Pow", "ReduceProd", "Softplus", "Sinh", "Cosh", "Tan"), _GROWS),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _EXPONENTIALS),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), _EXPONENTIALS),
    **dict.fromkeys(("Sin", "Cos"), "angles"),
    **dict.fromkeys(("Asinh", "Acosh", "Atanh"), _GROWS),
    **dict.fromkeys(("CumSum", "LRN", "LpNormalization", "LpPool", "GlobalLpPool"), _SUMS),
    "MeanVarianceNormalization": _SUMS,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _SCALE),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _STEPS),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "a loss"),
    "GridSample": "its coordinates choose what is read",
    "RoiAlign": "its coordinates choose what is read",
    "Range": "counts",
}
"""By operator, why it is in fp32 wherever it stands."""

UNBUILT: Mapping[str, frozenset[int]] = {
    "Celu": frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16}),
    **dict.fromkeys(("ConvTranspose", "HardSwish", "Mish"), frozenset({TensorProto.BFLOAT16})),
    "Shrink": frozenset({TensorProto.BFLOAT16}),
}
"""The types in which TensorRT for RTX 1.7 does not import or build an operator: each was tried."""

REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
# TensorRT adds up in fp32 whatever the type (benchmarks/results/sums_h100.txt: so many values), so
# that a sum is right where its result fits: one of an unknown number of values may grow with it.
LONG = 1 << 16
SUMS = _SUMS

DELICATE = frozenset(IN_FP32) | REDUCTIONS
"""Operators whose type is worth pinning: a lower one changes what they compute."""

GUARDS = frozenset({"Add", "Clip", "Max"})
"""Operators by which a tiny number keeps a divisor from being 0: any tiny number does it."""

ADDS = frozenset({"Add", "Sum", "AddLayerNorm", "AddRmsNorm"})
"""Operators in which what is tiny beside the other operand is lost."""

ELEMENTWISE = frozenset(
    {"Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish"}
    | {"LeakyRelu", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Reciprocal", "Relu"}
    | {"Selu", "Sigmoid", "Sign", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh"}
    | {"ThresholdedRelu", "Where", "Shrink"}
)
MOVES = frozenset(
    {"Cast", "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand"}
    | {"Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape"}
    | {"ReverseSequence", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"}
)
# Exact, or computed in fp32 inside of the one operator (benchmarks/results/sums_h100.txt).
_INSIDE = frozenset(
    {"Acos", "Asin", "Atan", "AveragePool", "BatchNormalization", "GlobalAveragePool"}
    | {"GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
    | {"MaxPool", "OneHot", "RMSNormalization", "ReduceMax", "ReduceMin", "Resize"}
    | {"RotaryEmbedding", "TopK", "Upsample"}
)
_COMPARES = frozenset(
    {"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
)
_ROUNDS = frozenset({"Ceil", "Floor", "Mod", "Round"})

EITHER = ELEMENTWISE | MOVES | _INSIDE | _COMPARES | _ROUNDS
"""Operators that compute as their neighbours do, so that no Cast stands around them."""

EXACT = frozenset({"Sin", "Cos", "Tan", "Range", "CumSum"}) | _ROUNDS
"""Operators that ask for more digits than the low type has: what leads up to them is fp32."""
