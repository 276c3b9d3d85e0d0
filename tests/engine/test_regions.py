"""What a plugin is weighed in: its surroundings up to the products, each distinct one once."""

from __future__ import annotations

from itertools import pairwise

import onnx

from opfuse.engine.regions import regions
from opfuse.engine.tensors import types_of
from tests.engine.test_cut import parsed

NORM = 'opfuse.RmsNorm <plugin_namespace = "opfuse">'
ROPE = 'opfuse.Rope <plugin_namespace = "opfuse">'
SUM = 'opfuse.AddRmsNorm <plugin_namespace = "opfuse">'
NAMES = ("RmsNorm", "Rope", "AddRmsNorm")


def found(body: str, inputs: str = "float[b,4] x", outputs: str = "float[b,4] y"):
    graph = f"g ({inputs}, float[4,4] w, float[4] g) => ({outputs}) {{ {body} }}"
    model = parsed(graph, NAMES)
    for name in ("w", "g"):  # weights
        shape = [4, 4] if name == "w" else [4]
        size = 16 if name == "w" else 4
        made = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [1.0] * size)
        model.graph.initializer.append(made)
    return model, regions(model, types_of(model))


def ops(model, places) -> list[str]:
    return [model.graph.node[index].op_type for index in places]


LAYER = "{y}0 = MatMul({x}, w) {y}1 = {NORM}({y}0, g) {y}2 = Relu({y}1) {y} = MatMul({y}2, w) "


def layers(count: int) -> str:
    names = ["x", *(f"h{index}" for index in range(count - 1)), "y"]
    return "".join(LAYER.replace("{NORM}", NORM).format(x=x, y=y) for x, y in pairwise(names))


def test_layers_alike_are_one_region():
    model, four = found(layers(4))
    assert len({item.key for item in four}) == 1
    assert [ops(model, item.nodes) for item in four] == [
        ["MatMul", "RmsNorm", "Relu", "MatMul"]
    ] * 4
    assert (four[0].inputs, four[0].outputs) == (("x",), ("h0",))
    _, eight = found(layers(8))
    assert {item.key for item in eight} == {item.key for item in four}


def test_other_shapes_and_attributes_are_other_regions():
    (one,) = found(layers(1))[1]
    (fixed,) = found(layers(1), "float[2,4] x", "float[2,4] y")[1]
    changed = layers(1).replace('"opfuse">', '"opfuse", epsilon = 0.5>')
    (other,) = found(changed)[1]
    assert len({one.key, fixed.key, other.key}) == 3


def test_a_plugin_that_serves_another_is_weighed_with_it():
    body = f"a = MatMul(x, w) n = {NORM}(a, g) r = Neg(n) m = {NORM}(r, g) y = MatMul(m, w)"
    model, (region,) = found(body)
    assert ops(model, region.group) == ["RmsNorm", "RmsNorm"]
    assert ops(model, region.nodes) == ["MatMul", "RmsNorm", "Neg", "RmsNorm", "MatMul"]


def test_sums_that_go_on_to_the_next_norm_do_not_join_the_layers():
    body = f"""
        a = MatMul(x, w)  n, s = {SUM}(a, x, g)  b = MatMul(n, w)
        m, t = {SUM}(b, s, g)  y = MatMul(m, w)"""
    model, both = found(body, outputs="float[b,4] y, float[b,4] t")
    assert [ops(model, item.group) for item in both] == [["AddRmsNorm"], ["AddRmsNorm"]]
    assert both[0].outputs == ("s", "b")
    assert both[1].inputs == ("n", "s")


def test_what_is_computed_once_for_all_layers_stays_outside():
    body = f"""
        c = Cos(x)  a = MatMul(x, w)  p = Mul(a, c)  n = {NORM}(p, g)  b = MatMul(n, w)
        q = Mul(b, c)  m = {NORM}(q, g)  y = MatMul(m, w)"""
    model, both = found(body)
    assert [ops(model, item.nodes) for item in both] == [["MatMul", "Mul", "RmsNorm", "MatMul"]] * 2
    assert all("c" in item.inputs for item in both)


def test_a_plugin_at_the_end_of_the_model():
    model, (region,) = found(f"a = MatMul(x, w) y = {NORM}(a, g)")
    assert ops(model, region.nodes) == ["MatMul", "RmsNorm"]
    assert region.outputs == ("y",)


def test_what_speaks_to_other_ranks_is_weighed_against_nothing():
    total = 'opfuse.AllReduce <plugin_namespace = "opfuse", group_size = 2>'
    body = f"a = MatMul(x, w)  b = {total}(a)  c = {NORM}(b, g)  d = {total}(c)  y = Relu(d)"
    model, (one,) = found(body)
    assert ops(model, one.group) == ["RmsNorm"]
    assert ops(model, one.nodes) == ["RmsNorm"]
