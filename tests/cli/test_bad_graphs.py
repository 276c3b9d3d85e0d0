"""Files that are ONNX and hold a graph that cannot be fused: exit code 2 and the node's name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.handmade import graph_model, node, write
from opfuse.stages.load import load

RELU = node("Relu", "x", "y", "r")
OPEN = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
CYCLE = [node("Add", "x b", "a", "first"), node("Relu", "a", "b", "second")]


def function(name, *calls, domain="local"):
    nodes = [helper.make_node(call, ["a"], ["b"], domain=domain if call[0] == "f" else "")
             for call in calls]  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, imports)


def calling(functions):
    model = graph_model(
        [node("f0", "x", "y", "call", domain="local")],
        opsets=[helper.make_opsetid("local", 1)],
    )
    model.functions.extend(functions)
    return model


def parsed(imports, inputs, text, functions=""):
    head = f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => (float[2] y)"
    return onnx.parser.parse_model(f"{head} {{ {text} }} {functions}")


def called(*, inputs="x", outputs="y", body=("a", "b")):
    """A call of a local function of one input and one output."""
    model = graph_model(
        [node("f0", inputs, outputs, "call", domain="local")],
        opsets=[helper.make_opsetid("local", 1)],
    )
    inner = [helper.make_node("Relu", body[:1], body[1:])]
    imports = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "f0", ["a"], ["b"], inner, imports))
    return model


def sized(size):
    """A model whose input has one dimension of this size, and its output one of any."""
    model = graph_model([RELU])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    model.graph.output[0].CopyFrom(OPEN)
    return model


def changed(change):
    model = graph_model([RELU])
    change(model)
    return model


def raw(name, dims, data, dtype=TensorProto.FLOAT):
    return TensorProto(name=name, dims=dims, data_type=dtype, raw_data=data)


def nested(depth):
    leaf = helper.make_graph([node("Identity", "x", "o")], "g", [], [_value("o")])
    body = leaf
    for _ in range(depth):
        branch = node("If", "c", "o", then_branch=body, else_branch=leaf)
        body = helper.make_graph([branch], "g", [], [_value("o")])
    return graph_model(
        [*body.node, node("Identity", "o", "y")],
        initializers=[numpy_helper.from_array(np.array(True), "c")],
    )


def _value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])


CASES = {
    "cycle": (graph_model([*CYCLE, node("Relu", "b", "y")]), "cycle", "'first'", "'second'"),
    "self loop": (graph_model([node("Add", "x y", "y", "me")]), "cycle", "'me'"),
    "undefined input": (graph_model([node("Add", "x lost", "y", "sum")]), "'lost'", "'sum'"),
    "undefined in a branch": (
        graph_model(
            [node("If", "c", "y", "cond", then_branch=(g := helper.make_graph(
                [node("Relu", "lost", "o", "inner")], "g", [], [_value("o")])), else_branch=g)],
            initializers=[numpy_helper.from_array(np.array(True), "c")],
        ),
        "'lost'",
    ),
    "duplicate tensor": (
        graph_model([node("Relu", "x", "y", "one"), node("Neg", "x", "y", "two")]),
        "'y'", "'one'", "'two'", "twice",
    ),
    "output named as input": (graph_model([node("Relu", "x", "x", "r")], outputs=["x"]), "'x'"),
    "duplicate initializer": (
        graph_model(
            [node("Add", "x w", "y")],
            initializers=[raw("w", [4], bytes(16)), raw("w", [4], bytes(16))],
        ),
        "'w'",
    ),
    "duplicate input": (graph_model([RELU], inputs=["x", "x"]), "'x'"),
    "duplicate output": (graph_model([RELU], outputs=["y", "y"]), "outputs", "'y'"),
    "negative size of an input": (sized(-3), "'x'", "-3", "dimension 0"),
    "unknown type of an input": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99)),
        "'x'", "99",
    ),
    "input without a shape": (
        changed(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
        "'x'", "no shape",
    ),
    "two opsets": (
        changed(lambda m: m.opset_import.append(helper.make_opsetid("", 13))),
        "versions 18 and 13",
    ),
    "call with too many inputs": (called(inputs="x x x"), "'call'", "3 inputs", "'f0' has 1"),
    "call with too many outputs": (called(outputs="y z"), "'call'", "2 outputs", "'f0' has 1"),
    "function output of no node": (called(body=("a", "c")), "'b'", "'f0'"),
    "too many values": (
        graph_model(
            [node("Add", "x w", "y")],
            initializers=[TensorProto(name="w", dims=[4], data_type=1, float_data=[1.0] * 5)],
        ),
        "'w'", "4 values", "5",
    ),
    "no outputs": (graph_model([RELU], outputs=[]), "no outputs"),
    "output of no node": (graph_model([RELU], outputs=["z"]), "'z'"),
    "opset 12": (graph_model([RELU], opset=12), "opset 12", "13 to 25"),
    "opset 99": (graph_model([RELU], opset=99), "opset 99", "13 to 25"),
    "unknown op": (graph_model([node("Relou", "x", "y", "typo")]), "'typo'", "'Relou'"),
    "op of a later opset": (
        graph_model([node("RMSNormalization", "x x", "y", "norm")], opset=18),
        "'norm'", "opset 23 or later",
    ),
    "short raw data": (
        graph_model([node("Add", "x w", "y")], initializers=[raw("w", [4], bytes(12))]),
        "'w'", "16 bytes", "12",
    ),
    "negative dimension": (
        graph_model([node("Add", "x w", "y")], initializers=[raw("w", [-4], b"")]),
        "'w'", "negative",
    ),
    "unknown type": (
        graph_model([node("Add", "x w", "y")], initializers=[raw("w", [4], bytes(16), 77)]),
        "'w'", "77",
    ),
    "huge dimension": (
        graph_model([node("Add", "x w", "y")], initializers=[raw("w", [10**10], bytes(16))]),
        "'w'",
    ),
    "missing input of an op": (graph_model([node("Add", "x", "y", "half")]), "half"),
    "shapes that do not fit": (
        graph_model([node("MatMul", "x w", "y", "mm")], initializers=[raw("w", [5, 4], bytes(80))]),
        "mm",
    ),
    "recursive function": (calling([function("f0", "f0")]), "'f0'", "calls itself"),
    "recursion through two": (
        calling([function("f0", "f1"), function("f1", "f0")]), "calls itself",
    ),
    "deep functions": (
        calling([*(function(f"f{i}", f"f{i + 1}") for i in range(3000)),
                 function("f3000", "Relu")]),
        "3001 deep",
    ),
    "function bomb": (
        calling([*(function(f"f{i}", *[f"f{i + 1}"] * 2) for i in range(40)),
                 function("f40", "Relu")]),
        "inlined",
    ),
    "function of another opset": (parsed(
        '"" : 18, "local" : 1', "float[2] x", "y = local.f(x)",
        '<domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }',
    ), "opset"),
    "optional input": (
        parsed('"" : 18', "optional(float[2]) x", "y = OptionalGetElement(x)"), "'x' is optional",
    ),
    "deep subgraphs": (nested(30), "nested"),
    "DepthToSpace of 2^32": (
        graph_model([node("DepthToSpace", "x", "y", "d2s", blocksize=2**32)]), "d2s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(cli, tmp_path, old_output, case):
    model, *says = CASES[case]
    path = write(tmp_path / "model.onnx", model)
    cli("fuse", path, "-o", old_output).refused(2, str(path), *says)


def test_a_size_of_minus_one_is_of_any_size(tmp_path):
    path = write(tmp_path / "m.onnx", sized(-1))
    source = load(path)
    assert not source.proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert any("-1" in note for note in source.notes)


def test_control_characters_of_names_do_not_reach_the_terminal(cli, tmp_path, old_output):
    path = write(tmp_path / "m.onnx", graph_model([node("Add", "x \x1b[2Jlost", "y", "a\x1b[0m")]))
    result = cli("fuse", path, "-o", old_output)
    result.refused(2, "lost")
    assert "\x1b" not in result.err


def test_nearer_fix_for_an_op_that_came_later(cli, tmp_path):
    model = graph_model([node("RMSNormalization", "x x", "y", "norm")], opset=18)
    result = cli("explain", write(tmp_path / "m.onnx", model))
    result.refused(2, "ai.onnx 18 has no operator", "opset 23 or later")


def test_a_valid_model_is_the_baseline_of_these_cases(tmp_path):
    onnx.checker.check_model(graph_model([RELU]), full_check=True)
