"""Small ONNX models for the engine tests: fused chains, deep chains, dynamic inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from opfuse.runtime import library

ROOT = Path(__file__).resolve().parent.parent

ADD_RMS_NORM = """
<domain: "opfuse", opset_import: ["": {opset}]>
AddRmsNorm <plugin_namespace, epsilon: float = 1e-5> (x, residual, gamma) => (y, sum) {{
    sum = Add(x, residual)
    wide = Cast<to: int = 1>(sum)
    square = Mul(wide, wide)
    axis = Constant<value_ints: ints = [-1]>()
    mean = ReduceMean<keepdims: int = 1>(square, axis)
    epsilon = Constant<value_float: float = @epsilon>()
    variance = Add(mean, epsilon)
    root = Sqrt(variance)
    unit = Div(wide, root)
    gamma_wide = Cast<to: int = 1>(gamma)
    scaled = Mul(unit, gamma_wide)
    y = CastLike(scaled, x)
}}
"""

NORM = 'opfuse.RmsNorm <plugin_namespace = "opfuse", epsilon = 1e-5>'
NORM_BODY = """
<domain: "opfuse", opset_import: ["": 18]>
RmsNorm_body <epsilon: float = 1e-5> (x, gamma) => (y) {
    square = Mul(x, x)  axis = Constant<value_ints = [-1]>()
    mean = ReduceMean<keepdims = 1>(square, axis)
    small = Constant<value_float: float = @epsilon>()  more = Add(mean, small)
    root = Sqrt(more)  unit = Div(x, root)  y = Mul(unit, gamma)
}
"""


def plugins() -> Path | None:
    """The plugin library, where it is built."""
    try:
        return library.find()
    except library.MissingComponent:
        return None


def plugin_ops() -> frozenset[str]:
    """The ops of the plugin library; none where it is not built, or is of another version."""
    try:
        return frozenset(op.name for op in library.describe(library.find()).ops)
    except library.MissingComponent:
        return frozenset()


def value(name: str, shape, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, weights=(), functions=(), opset: int = 18) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    domains = {function.domain for function in functions} | {
        node.domain for node in nodes if node.domain
    }
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    made = helper.make_model(graph, opset_imports=imports, functions=functions)
    made.ir_version = 10
    return made


def add_rms_norm(layers: int = 2, dtype: int = TensorProto.FLOAT16, opset: int = 18):
    """``layers`` times AddRmsNorm and MatMul, [batch, seq, 64], as `opfuse fuse` writes it."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = []
    x, residual = "x", "residual"
    for layer in range(layers):
        y, total, projected = (f"{name}.{layer}" for name in ("y", "sum", "projected"))
        nodes += [
            helper.make_node(
                "AddRmsNorm",
                [x, residual, "gamma"],
                [y, total],
                f"/layer.{layer}/norm",
                domain="opfuse",
                epsilon=1e-6,
                plugin_namespace="opfuse",
            ),
            helper.make_node("MatMul", [y, "weight"], [projected], f"/layer.{layer}/project"),
        ]
        x, residual = projected, total
    made = model(
        nodes,
        [value(name, ["batch", "seq", 64], dtype) for name in ("x", "residual")],
        [value(name, ["batch", "seq", 64], dtype) for name in (x, residual)],
        [
            numpy_helper.from_array(np.ones(64, kind), "gamma"),
            numpy_helper.from_array(np.eye(64).astype(kind), "weight"),
        ],
        [onnx.parser.parse_function(ADD_RMS_NORM.format(opset=opset))],
        opset,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def chain(length: int) -> onnx.ModelProto:
    """``length`` Relu in a row."""
    nodes = [helper.make_node("Relu", [f"t{index}"], [f"t{index + 1}"]) for index in range(length)]
    return model(nodes, [value("t0", ["batch", 16])], [value(f"t{length}", ["batch", 16])])


def dynamic(*inputs: tuple[str, list]) -> onnx.GraphProto:
    """A graph of inputs alone, for the profile."""
    return helper.make_graph([], "inputs", [value(name, shape) for name, shape in inputs], [])
