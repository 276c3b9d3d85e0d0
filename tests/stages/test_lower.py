"""Lowering: plugin, native or body for each fused node, and names TensorRT can tell apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opfuse.engine.outline import attributes
from opfuse.engine.plugin_nodes import leave
from opfuse.errors import EngineError
from opfuse.stages.lower import lower
from tests.engine_models import add_rms_norm, model, value

OPS = ("AddRmsNorm", "RmsNorm")


def types(made):
    return [node.op_type for node in made.graph.node]


def choices(lowered):
    return {(entry.choice, entry.reason) for entry in lowered}


def fused(
    op, inputs, outputs, opset=23, dtype=TensorProto.FLOAT16, shape=("b", 4, "s", 16), **attrs
):
    """A model of one fused node; its body does not matter here."""
    node = helper.make_node(
        op, inputs, outputs, op, "", "opfuse", plugin_namespace="opfuse", **attrs
    )
    body = [helper.make_node("Identity", [inputs[0]], [name]) for name in outputs]
    function = helper.make_function(
        "opfuse", op, inputs, outputs, body, [helper.make_opsetid("", opset)], ["plugin_namespace"]
    )
    ports = [[value(name, shape, dtype) for name in names] for names in (inputs, outputs)]
    return model([node], *ports, functions=[function], opset=opset)


@pytest.mark.parametrize("want", ["auto", "plugin"])
def test_ops_of_the_library_stay_plugin_nodes(want):
    made = add_rms_norm()
    lowered = lower(made, want, OPS)
    assert [(entry.node, entry.op) for entry in lowered] == [
        ("/layer.0/norm", "AddRmsNorm"),
        ("/layer.1/norm", "AddRmsNorm"),
    ]
    assert choices(lowered) == {("plugin", "the plugin library has it")}
    assert types(made) == ["AddRmsNorm", "MatMul"] * 2


def unread(made):
    """Of each plugin, whether it is told that nobody reads its sum."""
    return [attributes(node).get("sum_is_read") == 0 for node in made.graph.node]


def norm_and_reader(*reader):
    """A norm, and what else reads its sum."""
    made = fused("AddRmsNorm", ["x", "residual", "gamma"], ["y", "sum"])
    del made.graph.output[:]
    made.graph.output.append(value("y", ("b", 4, "s", 16), TensorProto.FLOAT16))
    made.graph.node.extend(reader)
    return made


def test_a_norm_is_told_where_nobody_reads_its_sum():
    made = norm_and_reader()
    lower(made, "plugin", OPS)
    assert unread(made) == [True]


@pytest.mark.parametrize("reader", ["node", "subgraph", "subgraph output", "output"])
def test_a_sum_that_is_read_is_written(reader):
    keep = helper.make_node("Identity", ["sum"], ["kept"])
    inner = helper.make_graph([], "inner", [], [value("sum", ("b",), TensorProto.FLOAT16)])
    if reader == "subgraph":
        kept = value("kept", ("b",), TensorProto.FLOAT16)
        inner = helper.make_graph([keep], "inner", [], [kept])
    branch = helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner)
    readers = {"node": [keep], "output": []}.get(reader, [branch])
    made = norm_and_reader(*readers)
    if reader == "output":
        made.graph.output.append(value("sum", ("b", 4, "s", 16), TensorProto.FLOAT16))
    lower(made, "plugin", OPS)
    assert not unread(made)[0]


def test_a_norm_that_is_left_carries_nothing_of_the_plugin():
    made = norm_and_reader()
    lower(made, "plugin", OPS)
    assert leave(made, made.graph.node[0])
    assert not made.graph.node[0].attribute


@pytest.mark.parametrize(
    ("want", "ops", "reason"),
    [
        ("auto", ("Other",), "the plugin library does not have it"),
        ("auto", (), "no plugin library is loaded"),
        ("leave", OPS, "asked for"),
    ],
)
def test_left_nodes_call_their_body_and_cannot_become_plugins(want, ops, reason):
    made = add_rms_norm()
    assert choices(lower(made, want, ops)) == {("leave", reason)}
    assert types(made) == ["AddRmsNorm_body", "MatMul"] * 2
    assert [function.name for function in made.functions] == ["AddRmsNorm_body"]
    onnx.checker.check_model(made, full_check=True)


def test_native_norms_are_standard_operators():
    made = add_rms_norm(opset=23)
    assert choices(lower(made, "native", OPS)) == {("native", "TensorRT has layers for it")}
    assert types(made) == ["Add", "RMSNormalization", "MatMul"] * 2
    onnx.checker.check_model(made, full_check=True)
    assert helper.get_attribute_value(made.graph.node[1].attribute[1]) == pytest.approx(1e-6)


def test_native_layer_norm_with_a_bias_adds_it_first():
    inputs = ["x", "residual", "gamma", "beta", "bias"]
    made = fused("AddLayerNorm", inputs, ["y", "sum"], 18, epsilon=1e-5, shape=(16,))
    assert choices(lower(made, "native", ())) == {("native", "TensorRT has layers for it")}
    assert types(made) == ["Add", "Add", "LayerNormalization"]
    assert list(made.graph.node[1].output) == ["sum"]
    onnx.checker.check_model(made, full_check=True)


def test_native_norms_behind_nodes_whose_types_the_model_does_not_say():
    inputs = ["a", "residual", "gamma", "beta"]
    made = fused("AddLayerNorm", inputs, ["y", "sum"], 18, epsilon=1e-5, shape=(16,))
    made.graph.node.insert(0, helper.make_node("Neg", ["x"], ["a"]))
    made.graph.input[0].name = "x"
    assert choices(lower(made, "native", ())) == {("native", "TensorRT has layers for it")}


ATTENTION = {"num_heads": 4, "kv_num_heads": 4, "scale": 0.25, "layout": "BHSD"}


def test_native_attention():
    made = fused("FlashAttention", ["q", "k", "v"], ["y"], **ATTENTION, causal=1)
    assert choices(lower(made, "native", ())) == {("native", "TensorRT has layers for it")}
    attributes = {
        item.name: helper.get_attribute_value(item) for item in made.graph.node[0].attribute
    }
    assert attributes == {"scale": 0.25, "is_causal": 1, "TRT_decomposable": 1}
    onnx.checker.check_model(made.__class__.FromString(without_trt(made)), full_check=True)


def without_trt(made):
    del made.graph.node[0].attribute[-1]
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        ("qkv", {"opset": 18}, "Attention needs opset 23, the model has 18"),
        ("qkv", {"dtype": TensorProto.FLOAT}, "takes no FLOAT"),
        ("qkv", {"softcap": 30.0}, "has no softcap 30"),
        ("qkv", {"window": 128}, "has no window 128"),
        ("qkvm", {"causal": 1}, "no mask beside is_causal"),
        ("qkvm", {"nan_guard": 1}, "fully masked row"),
        ("qkvn", {"lengths": 1}, "has no lengths 1"),
    ],
)
def test_attention_that_tensorrt_has_no_layer_for_is_left(inputs, options, reason):
    made = fused("FlashAttention", list(inputs), ["y"], **{**ATTENTION, **options})
    ((choice, why),) = choices(lower(made, "native", ()))
    assert choice == "leave"
    assert reason in why
    assert types(made) == ["FlashAttention_body"]


def rope(opset=23, half=("b", "s", 8), angles=TensorProto.FLOAT16, second="c", **attrs):
    """A Rope whose tables are halves twice, [b, 1, s, 16], as the standard operator's become."""
    shape, nodes = ("b", 4, "s", attrs.get("head_size", 16)), []
    attrs = {"interleaved": 0, "rotary_dim": 16, "num_heads": 4, **attrs}
    for name in ("c", "n"):
        pair = [name, second if name == "c" else name]
        nodes.append(helper.make_node("Concat", pair, [f"{name}2"], axis=-1))
        nodes.append(helper.make_node("Unsqueeze", [f"{name}2", "one"], [f"{name}4"]))
    made = fused("Rope", ["x", "c4", "n4"], ["y"], opset, shape=shape, **attrs)
    nodes += made.graph.node
    inputs = [value("x", shape, TensorProto.FLOAT16)]
    inputs += [value(name, half, angles) for name in ("c", "n", "other")]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    return model(nodes, inputs, made.graph.output, [one], made.functions, opset=opset)


@pytest.mark.parametrize("part", [{}, {"head_size": 32}])
def test_native_rope_takes_the_half_of_its_tables(part):
    made = rope(**part)
    assert choices(lower(made, "native", ())) == {("native", "TensorRT has layers for it")}
    (node,) = [node for node in made.graph.node if node.op_type == "RotaryEmbedding"]
    assert list(node.input) == ["x", "c", "n"]
    (attribute,) = node.attribute
    assert (attribute.name, attribute.i) == ("rotary_embedding_dim", 16 if part else 0)
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"opset": 22}, "RotaryEmbedding needs opset 23, the model has 22"),
        ({"interleaved": 1}, "wants the angles of pairs once"),
        ({"second": "other"}, "c4 is not provably one half of the angles twice"),
        ({"half": (1, "s", 8)}, "wants c as [batch, sequence, 8]"),
        ({"half": ("b", "s", 7)}, "wants c as [batch, sequence, 8]"),
        ({"half": ("b", None, 8)}, "the shape of c is not known"),
        ({"angles": TensorProto.FLOAT}, "wants c in the type of x"),
    ],
)
def test_rope_that_tensorrt_has_no_layer_for_is_left(options, reason):
    made = rope(**options)
    ((choice, why),) = choices(lower(made, "native", ()))
    assert choice == "leave"
    assert reason in why
    assert types(made)[-1] == "Rope_body"


def masked(op, dtype, mask_dtype):
    inputs, attrs = {
        "FlashAttention": (["q", "k", "v", "mask"], ATTENTION),
        "MaskedSoftmax": (["scores", "mask"], {"scale": 0.5, "causal": 0}),
    }[op]
    made = fused(op, inputs, ["y"], dtype=dtype, **attrs)
    made.graph.input[len(inputs) - 1].type.tensor_type.elem_type = mask_dtype
    return made


@pytest.mark.parametrize("op", ["FlashAttention", "MaskedSoftmax"])
@pytest.mark.parametrize(
    ("dtype", "mask", "choice"),
    [
        (TensorProto.FLOAT16, TensorProto.FLOAT16, "plugin"),
        (TensorProto.BFLOAT16, TensorProto.FLOAT, "plugin"),
        (TensorProto.FLOAT, TensorProto.FLOAT, "plugin"),
        (TensorProto.FLOAT16, TensorProto.BFLOAT16, "leave"),
        (TensorProto.FLOAT, TensorProto.FLOAT16, "leave"),
        (TensorProto.FLOAT16, TensorProto.DOUBLE, "leave"),
    ],
)
def test_plugins_are_for_masks_that_they_take(op, dtype, mask, choice):
    made = masked(op, dtype, mask)
    ((chosen, reason),) = choices(lower(made, "plugin", [op]))
    assert chosen == choice
    assert ("wants the mask" in reason) == (choice == "leave")
    assert types(made) == [op if choice == "plugin" else f"{op}_body"]


def test_lengths_are_no_mask():
    made = fused("FlashAttention", ["q", "k", "v", "lengths"], ["y"], **ATTENTION, lengths=1)
    made.graph.input[3].type.tensor_type.elem_type = TensorProto.INT64
    assert choices(lower(made, "plugin", ["FlashAttention"])) == {
        ("plugin", "the plugin library has it")
    }


def test_a_guard_that_keeps_nan_is_no_plugin():
    made = fused("FlashAttention", ["q", "k", "v"], ["y"], **{**ATTENTION, "nan_guard": 2})
    ((choice, reason),) = choices(lower(made, "plugin", ["FlashAttention"]))
    assert choice == "leave"
    assert "a row that sees no key" in reason


def test_ops_without_a_native_form_are_left():
    made = fused("GatedAct", ["gate_up"], ["y"], activation="silu")
    assert choices(lower(made, "native", ())) == {("leave", "TensorRT has no single layer for it")}


def test_functions_that_differ_in_domain_or_overload_get_names_of_their_own():
    def function(domain, overload, op):
        body = [helper.make_node(op, ["x"], ["y"])]
        made = helper.make_function(
            domain, "Gelu", ["x"], ["y"], body, [helper.make_opsetid("", 18)]
        )
        made.overload = overload
        return made

    def call(x, y, domain, overload):
        node = helper.make_node("Gelu", [x], [y], domain=domain)
        node.overload = overload
        return node

    made = model(
        [call("x", "a", "one", ""), call("a", "b", "one", "2"), call("b", "y", "two", "")],
        [value("x", [4])],
        [value("y", [4])],
        functions=[
            function("one", "", "Relu"),
            function("one", "2", "Neg"),
            function("two", "", "Exp"),
        ],
    )
    lower(made, "auto", ())
    names = [item.name for item in made.functions]
    assert len(set(names)) == 3
    assert "Gelu" not in names
    assert types(made) == names
    onnx.checker.check_model(made, full_check=True)


def test_fused_nodes_in_subgraphs_are_lowered_too():
    inner = add_rms_norm(1)
    branch = helper.make_graph(inner.graph.node, "then", [], inner.graph.output)
    made = model(
        [helper.make_node("If", ["condition"], list("ab"), then_branch=branch, else_branch=branch)],
        [value("condition", [], TensorProto.BOOL), *inner.graph.input],
        [value(name, None, TensorProto.FLOAT16) for name in "ab"],
        inner.graph.initializer,
        inner.functions,
    )
    assert [entry.choice for entry in lower(made, "leave", OPS)] == ["leave", "leave"]
    branches = [item.g for item in made.graph.node[0].attribute]
    assert [graph.node[0].op_type for graph in branches] == ["AddRmsNorm_body"] * 2


def test_standard_attention_may_be_written_out_by_tensorrt():
    node = helper.make_node("Attention", list("qkv"), ["y"])
    made = model(
        [node], [value(name, [1, 2, 8, 4]) for name in "qkv"], [value("y", [1, 2, 8, 4])], opset=23
    )
    assert lower(made, "auto", ()) == ()
    assert made.graph.node[0].attribute[0].name == "TRT_decomposable"


def test_what_tensorrt_silently_ignores_is_refused():
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"], "attention")
    made = model([node], [], [], opset=24)
    with pytest.raises(EngineError, match=r"'attention' .*nonpad_kv_seqlen"):
        lower(made, "auto", ())


PRODUCT = {"op": "GemmAct", "inputs": ["x", "w"], "outputs": ["y"], "activation": "silu"}


@pytest.mark.parametrize(
    ("want", "dtype", "choice", "reason"),
    [
        ("auto", TensorProto.FLOAT16, "plugin", "the plugin library has it"),
        ("plugin", TensorProto.FLOAT, "leave", "takes fp16 and bf16, it has FLOAT, FLOAT"),
        ("plugin", TensorProto.FLOAT16, "plugin", "the plugin library has it"),
        ("plugin", TensorProto.BFLOAT16, "plugin", "the plugin library has it"),
    ],
)
def test_products_are_plugins_where_asked_for_in_a_type_they_have(want, dtype, choice, reason):
    made = fused(**PRODUCT, dtype=dtype)
    ((chosen, why),) = choices(lower(made, want, ("GemmAct",)))
    assert chosen == choice
    assert reason in why


def test_what_only_the_body_reads_does_not_reach_the_plugin():
    made = fused(**PRODUCT, activation_number=1)
    lower(made, "plugin", ("GemmAct",))
    assert attributes(made.graph.node[0]) == {"activation": "silu"}


@pytest.mark.parametrize("op", ["Softmax", "Attention"])
@pytest.mark.parametrize("domain", ["custom", "com.microsoft"])
def test_an_operator_that_only_has_the_name_of_one_of_onnx_is_refused(domain, op):
    """TensorRT for RTX 1.7.1 builds a custom::Softmax into ONNX's."""
    node = helper.make_node(op, ["x"], ["y"], "odd", domain=domain)
    made = model([node], [value("x", (4,))], [value("y", (4,))])
    with pytest.raises(EngineError, match=f"'odd' .*{domain}.*ONNX's {op}"):
        lower(made, "leave", ())


@pytest.mark.parametrize(
    ("domain", "op"), [("custom", "Odd"), ("com.microsoft", "QuantizeLinear"), ("", "Softmax")]
)
def test_a_plugin_of_a_name_of_its_own_and_what_means_the_same_are_not(domain, op):
    node = helper.make_node(op, ["x"], ["y"], "odd", domain=domain)
    made = model([node], [value("x", (4,))], [value("y", (4,))])
    lower(made, "leave", ())
    assert types(made) == [op]
