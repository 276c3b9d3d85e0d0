"""The answers that rewriting relies on: values that are known, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto

from opfuse.graph.dims import is_unknown, symbol
from opfuse.graph.shapes import Facts, analyse


def _facts(*nodes: onnx.NodeProto, inputs: dict[str, str], constants: dict[str, Any]) -> Any:
    """Facts by tensor name of a graph of int64 inputs and constants."""
    graph = onnx.helper.make_graph(
        list(nodes),
        "test",
        [
            onnx.helper.make_tensor_value_info(
                name, TensorProto.INT64, [int(d) if d.isdigit() else d for d in text.split()]
            )
            for name, text in inputs.items()
        ],
        [],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 21)
    imported = gs.import_onnx(onnx.helper.make_model(graph, opset_imports=[opset]))
    return analyse(imported), imported.tensors()


def _value(facts: Facts, tensor: gs.Tensor) -> Any:
    value = facts.value(tensor)
    return None if value is None else value.tolist()


node = onnx.helper.make_node
BATCH, SEQ = symbol("batch"), symbol("seq")


def test_a_shape_computed_from_a_shape_is_followed() -> None:
    facts, tensors = _facts(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Slice", ["shape", "one", "two"], ["seq"]),
        node("Unsqueeze", ["batch", "zero_list"], ["batch_list"]),
        node("Mul", ["seq", "one"], ["same"]),
        node("Div", ["last", "four"], ["head"]),
        node("Shape", ["x"], ["last"], start=-1),
        node("Concat", ["batch_list", "same", "four", "minus_one"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["heads"]),
        inputs={"x": "batch seq 64"},
        constants={
            "zero": np.int64(0),
            "one": [1],
            "two": [2],
            "zero_list": [0],
            "four": [4],
            "minus_one": [-1],
        },
    )
    assert _value(facts, tensors["shape"]) == [BATCH, SEQ, 64]
    assert _value(facts, tensors["target"]) == [BATCH, SEQ, 4, -1]
    assert facts.shape(tensors["heads"]) == (BATCH, SEQ, 4, 16)


def test_the_expand_guard_of_the_tracer_is_decided() -> None:
    """torch writes ``Where(shape == -1, 1, shape)`` before every Expand."""
    facts, tensors = _facts(
        node("Shape", ["x"], ["shape"]),
        node("Shape", ["shape"], ["rank"]),
        node(
            "ConstantOfShape",
            ["rank"],
            ["ones"],
            value=onnx.numpy_helper.from_array(np.array([1], np.int64)),
        ),
        node("Mul", ["ones", "minus_one"], ["unset"]),
        node("Equal", ["shape", "unset"], ["is_unset"]),
        node("Where", ["is_unset", "ones", "shape"], ["target"]),
        node("Expand", ["y", "target"], ["wide"]),
        inputs={"x": "batch 4 seq", "y": "batch 1 seq"},
        constants={"minus_one": np.int64(-1)},
    )
    assert _value(facts, tensors["is_unset"]) == [False, False, False]
    assert _value(facts, tensors["target"]) == [BATCH, 4, SEQ]
    assert facts.shape(tensors["wide"]) == (BATCH, 4, SEQ)


def test_arithmetic_in_floating_point_is_rounded_as_its_dtype() -> None:
    facts, tensors = _facts(
        node("Shape", ["x"], ["last"], start=-1),
        node("Cast", ["last"], ["float"], to=TensorProto.FLOAT),
        node("Sqrt", ["float"], ["root"]),
        node("Reciprocal", ["root"], ["scale"]),
        node("Div", ["float", "root"], ["ratio"]),
        inputs={"x": "batch 80"},
        constants={},
    )
    root = np.sqrt(np.float32(80))
    assert _value(facts, tensors["scale"]) == [float(np.float32(1) / root)]
    assert _value(facts, tensors["ratio"]) == [float(np.float32(80) / root)]


@pytest.mark.parametrize(
    ("op", "a", "b", "result"),
    [
        ("Add", "batch", 1, BATCH + 1),
        ("Sub", "seq", "batch", SEQ - BATCH),
        ("Div", "seq", 2, SEQ // 2),
        ("Mod", "seq", 4, SEQ % 4),
        ("Max", "seq", 0, SEQ),
        ("Less", "seq", -1, False),
        ("GreaterOrEqual", "seq", 0, True),
        ("Equal", "seq", "seq", True),
        ("Equal", "seq", "batch", None),
        ("Div", "minus", 2, None),
    ],
)
def test_arithmetic_on_sizes(op: str, a: str, b: Any, result: Any) -> None:
    facts, tensors = _facts(
        node("Size", ["x"], ["batch"]),
        node("Size", ["y"], ["seq"]),
        node("Neg", ["seq"], ["minus"]),
        node(op, [a, b if isinstance(b, str) else "b"], ["result"]),
        inputs={"x": "batch", "y": "seq"},
        constants={"b": np.int64(0 if isinstance(b, str) else b)},
    )
    assert _value(facts, tensors["result"]) == result


def test_an_integer_that_would_wrap_around_is_unknown() -> None:
    facts, tensors = _facts(
        node("Mul", ["big", "big"], ["wrapped"]),
        inputs={},
        constants={"big": np.int64(1 << 40)},
    )
    assert facts.value(tensors["wrapped"]) is None
    assert facts.shape(tensors["wrapped"]) == ()


def test_a_size_from_the_data_is_unknown_and_the_rest_is_not() -> None:
    facts, tensors = _facts(
        node("NonZero", ["x"], ["found"]),
        node("Gather", ["table", "found"], ["rows"]),
        node("Concat", ["n", "four"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["folded"]),
        inputs={"x": "batch 12", "n": "1"},
        constants={"table": np.zeros((5, 3), np.float32), "four": [4]},
    )
    two, count, three = facts.shape(tensors["rows"])
    assert (two, three) == (2, 3)
    assert is_unknown(count)
    assert facts.shape(tensors["folded"]) == (BATCH * 3, 4)


def test_what_is_computed_wins_over_what_the_model_states() -> None:
    x = gs.Variable("x", np.float32, ["batch", "seq"])
    y = gs.Variable("y", np.float32, ["nonsense", 5])
    found = gs.Variable("found", np.int64, [2, 7])
    custom = gs.Variable("custom", np.float16, ["batch", "2*seq", None])
    nodes = [
        gs.Node("Relu", inputs=[x], outputs=[y]),
        gs.Node("NonZero", inputs=[x], outputs=[found]),
        gs.Node("Mystery", domain="com.example", inputs=[x], outputs=[custom]),
    ]
    facts = analyse(gs.Graph(nodes, inputs=[x], outputs=[y, found, custom]))
    assert facts.shape(y) == (BATCH, SEQ)
    assert facts.shape(found) == (2, 7)
    batch, twice, rest = facts.shape(custom) or ()
    assert (batch, twice) == (BATCH, SEQ * 2)
    assert is_unknown(rest)
    assert facts.dtype(custom) == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("op", "attrs", "inputs"),
    [
        ("Reshape", {}, ["x"]),
        ("Transpose", {"perm": [9, 9]}, ["x"]),
        ("Concat", {}, ["x", "x"]),
        ("MatMul", {}, ["x", "x"]),
        ("Split", {"axis": 7}, ["x"]),
        ("Cast", {}, ["x"]),
        ("Conv", {"strides": "two"}, ["x", "x"]),
        ("Einsum", {"equation": "->->"}, ["x"]),
        ("Gather", {"axis": 0}, ["x", "x", "x"]),
        ("Attention", {}, ["x"]),
        ("Add", {}, []),
        ("Unsqueeze", {"axes": [0, 0, 9]}, ["x"]),
        ("ConstantOfShape", {"value": "text"}, ["x"]),
    ],
)
def test_an_invalid_node_costs_only_its_own_output(
    op: str, attrs: dict[str, Any], inputs: list[str]
) -> None:
    x = gs.Variable("x", np.float32, [2, 3])
    y, z = gs.Variable("y", np.float32, ["batch"]), gs.Variable("z")
    nodes = [
        gs.Node(op, attrs=attrs, inputs=[x for _ in inputs], outputs=[y]),
        gs.Node("Relu", inputs=[x], outputs=[z]),
    ]
    facts = analyse(gs.Graph(nodes, inputs=[x], outputs=[y, z]))
    assert facts.shape(z) == (2, 3)


def test_a_value_that_contradicts_its_shape_is_dropped() -> None:
    facts, tensors = _facts(
        node("Concat", ["a", "matrix"], ["joined"], axis=0),
        inputs={},
        constants={"a": [1, 2], "matrix": [[3, 4]]},
    )
    assert facts.value(tensors["joined"]) is None


def test_overflow_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    facts, tensors = _facts(
        node("Mul", ["big", "big"], ["product"]),
        inputs={},
        constants={"big": np.float16(60000)},
    )
    assert _value(facts, tensors["product"]) == float("inf")
    assert not recwarn.list


def test_a_node_that_a_pass_inserts_is_inferred_alone() -> None:
    x = gs.Variable("x", np.float16, ["batch", "seq", 64])
    gamma = gs.Constant("gamma", np.ones(64, np.float16))
    y, total = gs.Variable("y"), gs.Variable("total")
    graph = gs.Graph([], inputs=[x], outputs=[])
    facts = analyse(graph)
    graph.nodes.append(
        gs.Node("AddRmsNorm", domain="opfuse", inputs=[x, x, gamma], outputs=[y, total])
    )
    facts.infer(graph.nodes[-1])
    assert facts.shape(y) == facts.shape(total) == (BATCH, SEQ, 64)
    assert facts.dtype(y) == TensorProto.FLOAT16


def test_weights_stay_on_disk() -> None:
    weight = onnx.TensorProto(name="w", data_type=TensorProto.INT64, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="absent.data")
    graph = onnx.helper.make_graph(
        [node("Reshape", ["x", "w"], ["y"])],
        "test",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [],
        [weight],
    )
    imported = gs.import_onnx(onnx.helper.make_model(graph))
    facts, y = analyse(imported), imported.tensors()["y"]
    assert len(facts.shape(y) or ()) == 2
    assert facts.value(imported.tensors()["w"]) is None


def test_the_last_as_many_as_there_are_is_all() -> None:
    """A hybrid's convolution layers read ``mask[:, -seq:]``."""
    facts, tensors = _facts(
        node("Shape", ["x"], ["length"], start=1),
        node("Neg", ["length"], ["start"]),
        node("Slice", ["x", "start", "far", "one"], ["y"]),
        inputs={"x": "batch seq"},
        constants={"far": [(1 << 63) - 1], "one": [1]},
    )
    assert facts.shape(tensors["y"]) == (BATCH, SEQ)
