"""Sizes are read from the graph's inputs, so that nothing fused is kept for its shape alone."""

from __future__ import annotations

import onnx

from tests.small import fuse_model, model

NORM = """
    square = Mul(x, x)
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-5)
    root = Sqrt(variance)
    unit = Div(x, root)
    h = Mul(unit, gamma)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})


def rerooted(text, inputs="T[B, S, 6] x", outputs="T y", **weights):
    return fuse_model(model(text, inputs, outputs, {"gamma": (6,), **weights}, opset=17))


def shapes_of(made: onnx.ModelProto) -> list[str]:
    return [node.input[0] for node in made.graph.node if node.op_type == "Shape"]


def test_the_shape_of_an_inner_tensor_is_the_input_s():
    text = (
        NORM
        + "s = Shape(unit)\nones = ConstantOfShape<value = float[1] {1.0}>(s)\ny = Add(h, ones)"
    )
    outcome = rerooted(text)
    assert outcome.counts == {"RmsNorm": 1}
    assert set(shapes_of(outcome.after)) == {"x"}
    outcome.same(*SIZES)


def test_sizes_of_two_inputs():
    text = """
        t = MatMul(x, w)
        s = Shape(t)
        y = ConstantOfShape<value = float[1] {2.0}>(s)
    """
    outcome = fuse_model(model(text, "T[B, S, 6] x, T[6, P] w"))
    assert set(shapes_of(outcome.after)) == {"x", "w"}
    outcome.same({"B": 2, "S": 3, "P": 4}, {"B": 1, "S": 1, "P": 1})


def test_a_part_of_the_shape():
    text = (
        NORM
        + """
        s = Shape<start=1, end=3>(h)
        z = Concat<axis=0>([1], s)
        ones = ConstantOfShape<value = float[1] {1.0}>(z)
        y = Add(h, ones)
    """
    )
    outcome = rerooted(text)
    assert set(shapes_of(outcome.after)) <= {"x"}
    outcome.same(*SIZES)


def test_a_size_that_no_input_has_is_read_where_it_is():
    text = "n = NonZero(x)\nt = Transpose(n)\ns = Shape(t)\ny = ConstantOfShape(s)"
    outcome = fuse_model(model(text, "T[B, 6] x", "float y"))
    assert "Shape" in outcome.ops
    outcome.same({"B": 2}, {"B": 5})


def test_a_computed_size_is_read_where_it_is():
    """2 B is no size of an input, though B is."""
    text = "t = Concat<axis=0>(x, x)\ns = Shape(t)\ny = ConstantOfShape(s)"
    outcome = fuse_model(model(text, "T[B, 6] x", "float y"))
    outcome.same({"B": 2}, {"B": 5})


def test_a_shape_that_leaves_the_graph_keeps_its_name():
    outcome = rerooted(NORM + "y = Neg(h)\nsizes = Shape(unit)", outputs="T y, int64 sizes")
    assert [value.name for value in outcome.after.graph.output] == ["y", "sizes"]
    outcome.same(*SIZES)
