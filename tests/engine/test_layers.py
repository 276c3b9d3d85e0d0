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
    Layer("/norm, 1_myl0_1", "custom_layer", ("fp16", "bf16"), ("/norm",)),
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
                    "Outputs": outputs(Datatype="Half"),
                    "Metadata": "[ONNX Layer: /a]\x1e[ONNX Layer: /b]",
                },
                {"Name": "m", "Outputs": outputs(**{"Format/Datatype": "Row major linear FP32"})},
                "only a name",
            ]
        }
    )
    assert from_inspector(text) == [
        Layer("n", "PluginV3", ("fp16",), ("/a", "/b")),
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
