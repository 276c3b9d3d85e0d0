"""Reading layers: the builder's listing and the inspector's JSON, old and new."""

from __future__ import annotations

import json

from opfuse.engine.layers import (
    Layer,
    count_dtypes,
    count_plugins,
    count_types,
    dtype_name,
    from_inspector,
    from_listing,
    products,
)

TENSOR = "{{ Name: {0}, Dimensions: [-1,64], Strides: [64,1], Datatype: {1}, Format: (Linear) x }}"
LISTING = "\n".join(
    [
        "Layers:",
        "Name: shapes_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
        "TacticName: , StreamId: 0, Metadata: ",
        "Name: /norm, 1_myl0_1, LayerType: custom_layer, "
        f"Inputs: [ {TENSOR.format('x', 'Float')}], Constants: [], "
        f"Outputs: [ {TENSOR.format('y', 'Half')}, {TENSOR.format('s', 'BFloat16')}], "
        "TacticName: , StreamId: 0, Metadata: [ONNX Layer: /norm]",
        "",
        "I/O Tensors:",
        " Name: x, IOMode: Input, DataType: Half",
    ]
)
LAYERS = [
    Layer("shapes_0", "shape_call", (), ()),
    Layer("/norm, 1_myl0_1", "custom_layer", ("fp16", "bf16"), ("/norm",), ("fp32",)),
]


def test_listing_gives_every_layer_with_its_output_types():
    assert from_listing(LISTING) == LAYERS


def test_a_listing_that_never_came_has_no_layers():
    assert from_listing("") == []


def test_inspector_json_with_either_spelling_of_types():
    def outputs(**fields):
        return [{"Name": "y", "Dimensions": [1], **fields}]

    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "n",
                    "LayerType": "PluginV3",
                    "Inputs": outputs(Datatype="Float"),
                    "Outputs": outputs(Datatype="Half"),
                    "Metadata": "[ONNX Layer: /a]\x1e[ONNX Layer: /b]",
                },
                {"Name": "m", "Outputs": outputs(**{"Format/Datatype": "Row major linear FP32"})},
                "only a name",
            ]
        }
    )
    assert from_inspector(text) == [
        Layer("n", "PluginV3", ("fp16",), ("/a", "/b"), ("fp32",)),
        Layer("m", "?", ("fp32",), ()),
    ]


def test_counts():
    assert count_types(LAYERS) == {"shape_call": 1, "custom_layer": 1}
    assert count_dtypes(LAYERS) == {"fp16": 1, "bf16": 1}
    assert count_plugins(LAYERS, {"/norm": "RmsNorm"}) == {"RmsNorm": 1}
    assert count_plugins(LAYERS, {}) == {"custom_layer": 1}


def test_dtype_names_are_those_of_the_command_line():
    names = ["HALF", "Float", "BF16", "INT64", "BOOL"]
    assert [dtype_name(name) for name in names] == ["fp16", "fp32", "bf16", "int64", "bool"]


def test_products_by_the_type_that_they_compute_in():
    """Names and types as TensorRT for RTX 1.7 lists them."""
    half, mixed, wide = ("fp16",), ("fp16", "fp32", "fp16"), ("fp32", "int64")
    gemm = Layer("node_linear_6_myl0_18", "gemm", ("fp32",), ("node_linear_6",), half)
    fusion = Layer("__myl_FcTanh_myl0_1", "runtime_fusion", half, ("h", "y"), ("fp32",))
    conv = Layer("node_of_h_myl0_2", "correlation", ("fp32",), (), wide)
    attention = Layer("_gemm_mha_v2_myl0_4", "kgen_mha", half, ("a",), mixed)
    old = Layer("MatMul_3", "CaskGemmMatrixMultiply", ("fp32",), ())
    pointwise = Layer("__myl_Add_myl0_5", "kgen", ("fp32",), ("s",), wide)
    plugin = Layer("flash", "custom_layer", half, ("flash",), mixed)
    norm = Layer("norm", "custom_layer", ("fp32",), ("norm",), ("fp32",))
    found = products(
        [gemm, fusion, conv, attention, old, pointwise, plugin, norm],
        {"flash": "FlashAttention", "norm": "RmsNorm"},
    )
    assert found == {"fp16": [gemm, attention, plugin], "fp32": [fusion, conv, old]}


def test_a_layer_knows_the_nodes_that_it_computes():
    inside = "node_of_product | attention/FlashAttention (FlashAttention_body)"
    layer = Layer("node_of_product_416.1_myl0_24", "gemm", ("fp16",), (inside, "node_linear"))
    assert layer.nodes == {"attention/FlashAttention", "node_linear", "node_of_product_416"}
