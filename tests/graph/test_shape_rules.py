"""Every shape rule against what onnxruntime computes at two sets of sizes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import TensorProto

from opfuse.graph.dims import evaluate, is_unknown, parse
from opfuse.graph.shapes import analyse

SIZES = ({"batch": 2, "seq": 7, "past": 3}, {"batch": 3, "seq": 12, "past": 5})
FAR = (1 << 63) - 1


@dataclass(frozen=True)
class Case:
    """One operator: text is a float input of that shape, anything else a constant."""

    op: str
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 23


def case(op: str, *inputs: Any, gives: str | tuple[str, ...], opset: int = 23, **attrs: Any) -> Any:
    outputs = gives if isinstance(gives, tuple) else (gives,)
    return pytest.param(Case(op, inputs, outputs, attrs, opset), id=f"{op}-{'-'.join(outputs)}")


CASES = [
    case("Add", "batch 1 seq", "4 1", gives="batch 4 seq"),
    case("Mul", "batch seq", np.float32(2), gives="batch seq"),
    case("Max", "batch 1", "1 seq", "4 1 1", gives="4 batch seq"),
    case("PRelu", "batch 4", "4", gives="batch 4"),
    case("Where", np.ones((1, 1), bool), "batch 1", "seq", gives="batch seq"),
    case("Cast", "batch seq", to=TensorProto.FLOAT16, gives="batch seq"),
    case("IsNaN", "batch seq", gives="batch seq"),
    case("Greater", "batch seq", "seq", gives="batch seq"),
    case("Clip", "seq", np.float32(0), gives="seq"),
    case("Dropout", "batch seq", gives=("batch seq", "batch seq")),
    case("Softmax", "batch seq", gives="batch seq"),
    case("Gelu", "batch seq", gives="batch seq"),
    case("CumSum", "batch seq", np.int64(1), gives="batch seq"),
    case("Trilu", "seq seq", gives="seq seq"),
    case("Reshape", "batch seq 64", [0, 0, 4, 16], gives="batch seq 4 16"),
    case("Reshape", "batch seq 64", [-1, 64], gives="batch*seq 64"),
    case("Reshape", "batch seq 64", [0, -1, 16], gives="batch 4*seq 16"),
    case("Reshape", "batch 0 4", [0, 3], allowzero=1, gives="0 3"),
    case("Reshape", "1 1", np.array([], np.int64), gives=""),
    case("Transpose", "batch seq 4 16", perm=[0, 2, 1, 3], gives="batch 4 seq 16"),
    case("Transpose", "batch seq 4", gives="4 seq batch"),
    case("Unsqueeze", "batch seq", [1, -1], gives="batch 1 seq 1"),
    case("Unsqueeze", "batch seq", axes=[0], opset=11, gives="1 batch seq"),
    case("Squeeze", "batch 1 seq 1", [1], gives="batch seq 1"),
    case("Squeeze", "2 1 3 1", gives="2 3"),
    case("Squeeze", "batch 1 seq", axes=[-2], opset=11, gives="batch seq"),
    case("Flatten", "batch seq 4", axis=2, gives="batch*seq 4"),
    case("Flatten", "batch seq 4", axis=0, gives="1 4*batch*seq"),
    case("Concat", "batch past 4", "batch seq 4", axis=-2, gives="batch past+seq 4"),
    case("Split", "batch 12", axis=1, num_outputs=3, gives=("batch 4",) * 3),
    case("Split", "batch 7", axis=-1, num_outputs=2, gives=("batch 4", "batch 3")),
    case("Split", "batch 12", [4, 8], axis=1, gives=("batch 4", "batch 8")),
    case("Split", "batch 12", axis=1, split=[6, 6], opset=11, gives=("batch 6", "batch 6")),
    case("Slice", "batch seq 64", [32], [FAR], [-1], gives="batch seq 32"),
    case("Slice", "batch seq", [1], [FAR], [1], gives="batch max(seq-1,0)"),
    case("Slice", "batch seq", [-1], [FAR], [1], gives="batch min(1,seq)"),
    case("Slice", "batch seq", [0], [-1], [1], gives="batch max(seq-1,0)"),
    case("Slice", "batch 64", [0], [64], [1], [2], gives="batch 32"),
    case("Slice", "batch seq", [0], [FAR], [1], [2], gives="batch (seq+1)//2"),
    case("Slice", "seq 9", [-1, -1], [-FAR, -FAR], [0, 1], [-1, -2], gives="seq 5"),
    case(
        "Slice",
        "batch seq 9",
        starts=[0, 2],
        ends=[4, 5],
        axes=[1, 2],
        opset=9,
        gives="batch min(4,seq) 3",
    ),
    case("Expand", "batch 1 seq", [1, 4, 1], gives="batch 4 seq"),
    case("Tile", "batch seq", [1, 3], gives="batch 3*seq"),
    case("Pad", "batch seq", [0, 1, 0, 2], gives="batch seq+3"),
    case("Pad", "batch seq", [1, 2], None, [1], gives="batch seq+3"),
    case("DepthToSpace", "batch 8 3 5", blocksize=2, gives="batch 2 6 10"),
    case("SpaceToDepth", "batch 2 6 10", blocksize=2, gives="batch 8 3 5"),
    case("Gather", "32 4", np.array([[1, 2, 3]]), gives="1 3 4"),
    case("Gather", "batch seq 4", np.int64(0), axis=1, gives="batch 4"),
    case("GatherElements", "batch 4", np.zeros((1, 2), np.int64), axis=1, gives="1 2"),
    case("GatherND", "2 3 4", np.zeros((5, 2), np.int64), gives="5 4"),
    case("GatherND", "2 3 4", np.zeros((2, 1), np.int64), batch_dims=1, gives="2 4"),
    case("ScatterND", "8 seq", np.zeros((1, 1), np.int64), "1 seq", gives="8 seq"),
    case("ScatterElements", "8 4", np.zeros((1, 4), np.int64), "1 4", gives="8 4"),
    case("TopK", "batch 9", [3], gives=("batch 3", "batch 3")),
    case("ArgMax", "batch seq 4", axis=-1, keepdims=0, gives="batch seq"),
    case("OneHot", np.zeros((2, 3), np.int64), [5], np.array([0, 1], np.float32), gives="2 3 5"),
    case("Compress", "batch 4", np.ones(4, bool), axis=1, gives="batch ?"),
    case("NonZero", "batch seq", gives="2 ?"),
    case("ReduceMean", "batch seq 4", [-1], gives="batch seq 1"),
    case("ReduceMean", "batch seq 4", axes=[1], keepdims=0, opset=13, gives="batch 4"),
    case("ReduceSum", "batch seq", keepdims=0, gives=""),
    case(
        "ReduceSum", "batch seq", np.array([], np.int64), noop_with_empty_axes=1, gives="batch seq"
    ),
    case("MatMul", "batch 1 seq 16", "4 16 seq", gives="batch 4 seq seq"),
    case("MatMul", "16", "batch 16 seq", gives="batch seq"),
    case("MatMul", "batch seq 16", "16", gives="batch seq"),
    case("Gemm", "16 seq", "32 16", "32", transA=1, transB=1, gives="seq 32"),
    case("Einsum", "batch seq 8", "batch 8 4", equation="bsk,bkn->bns", gives="batch 4 seq"),
    case("Einsum", "seq 8", "8 4", equation="ij,jk", gives="seq 4"),
    case("LayerNormalization", "batch seq 8", "8", gives=("batch seq 8", "batch seq 1")),
    case("RMSNormalization", "batch seq 8", "8", gives="batch seq 8"),
    case("InstanceNormalization", "batch 4 seq", "4", "4", gives="batch 4 seq"),
    case("GroupNormalization", "batch 4 seq", "4", "4", num_groups=2, gives="batch 4 seq"),
    case("BatchNormalization", "batch 4 seq", "4", "4", "4", "4", gives="batch 4 seq"),
    case("Conv", "batch 3 32 32", "8 3 4 4", strides=[4, 4], gives="batch 8 8 8"),
    case("Conv", "batch 4 seq", "6 2 3", group=2, pads=[1, 1], gives="batch 6 seq"),
    case(
        "Conv",
        "batch 4 seq",
        "6 4 3",
        strides=[2],
        dilations=[2],
        pads=[2, 2],
        gives="batch 6 (seq-1)//2+1",
    ),
    case("Conv", "batch 4 9", "6 4 3", strides=[2], auto_pad="SAME_UPPER", gives="batch 6 5"),
    case("ConvTranspose", "batch 4 seq", "4 3 3", strides=[2], gives="batch 3 2*seq+1"),
    case(
        "MaxPool",
        "batch 3 9 9",
        kernel_shape=[2, 2],
        strides=[2, 2],
        ceil_mode=1,
        gives="batch 3 5 5",
    ),
    case("AveragePool", "batch 3 9 9", kernel_shape=[3, 3], gives="batch 3 7 7"),
    case("GlobalAveragePool", "batch 3 8 9", gives="batch 3 1 1"),
    case("Resize", "1 3 8 9", None, np.array([1, 1, 2, 2], np.float32), gives="1 3 16 18"),
    case("Resize", "1 3 8 9", None, None, [1, 3, 5, 6], gives="1 3 5 6"),
    case(
        "Attention",
        "batch seq 64",
        "batch past 32",
        "batch past 48",
        q_num_heads=4,
        kv_num_heads=2,
        gives="batch seq 96",
    ),
    case(
        "Attention",
        "batch 4 seq 16",
        "batch 2 seq 16",
        "batch 2 seq 8",
        None,
        "batch 2 past 16",
        "batch 2 past 8",
        gives=("batch 4 seq 8", "batch 2 past+seq 16", "batch 2 past+seq 8"),
    ),
    case("RotaryEmbedding", "batch 4 seq 16", "batch seq 8", "batch seq 8", gives="batch 4 seq 16"),
    case("ConstantOfShape", [2, 3], gives="2 3"),
    case("Range", np.int64(2), np.int64(11), np.int64(3), gives="3"),
    case("Range", np.float32(0), np.float32(1), np.float32(0.25), gives="4"),
    case("EyeLike", "batch seq", gives="batch seq"),
]


def _graph(spec: Case) -> gs.Graph:
    inputs: list[gs.Tensor] = []
    for index, given in enumerate(spec.inputs):
        if given is None:
            inputs.append(gs.Variable.empty())
        elif isinstance(given, str):
            shape = [int(dim) if dim.isdigit() else dim for dim in given.split()]
            inputs.append(gs.Variable(f"x{index}", np.float32, shape))
        else:
            inputs.append(gs.Constant(f"c{index}", np.asarray(given)))
    outputs = [gs.Variable(f"y{index}") for index in range(len(spec.outputs))]
    node = gs.Node(spec.op, attrs=spec.attrs, inputs=inputs, outputs=outputs)
    free = [t for t in inputs if isinstance(t, gs.Variable) and t.name]
    return gs.Graph([node], inputs=free, outputs=outputs, opset=spec.opset)


def _run(graph: gs.Graph, sizes: dict[str, int]) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {
        t.name: rng.standard_normal([evaluate(parse(str(dim)), sizes) for dim in t.shape]).astype(
            t.dtype
        )
        for t in graph.inputs
    }
    return list(session.run(None, feeds))


@pytest.mark.parametrize("spec", CASES)
def test_shape_and_dtype_are_those_of_onnxruntime(spec: Case) -> None:
    graph = _graph(spec)
    facts = analyse(graph)
    for tensor, text in zip(graph.outputs, spec.outputs, strict=True):
        shape = facts.shape(tensor)
        assert shape is not None
        assert len(shape) == len(text.split())
        for dim, expected in zip(shape, text.split(), strict=True):
            assert is_unknown(dim) if expected == "?" else dim == parse(expected)
    for sizes in SIZES:
        for tensor, actual in zip(graph.outputs, _run(graph, sizes), strict=True):
            shape = facts.shape(tensor) or ()
            known = [
                (dim, size)
                for dim, size in zip(shape, actual.shape, strict=True)
                if not is_unknown(dim)
            ]
            assert [evaluate(dim, sizes) for dim, _ in known] == [size for _, size in known]
            assert facts.dtype(tensor) == onnx.helper.np_dtype_to_tensor_dtype(actual.dtype)


def test_the_graph_is_not_changed() -> None:
    graph = _graph(CASES[0].values[0])
    before = str(graph)
    analyse(graph)
    assert str(graph) == before
