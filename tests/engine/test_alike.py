"""Segments that compute the same share an engine; what differs between them becomes an input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from opfuse.engine.alike import merged
from opfuse.engine.cut import Segment, cut
from opfuse.engine.tensors import Typed, types_of
from opfuse.numerics.session import OnnxRuntime

HEADER = """
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
"""
BODIES = """
<domain: "opfuse", opset_import: ["": 18]>
MaskedSoftmax_body (x) => (y) { y = Softmax(x) }
<domain: "opfuse", opset_import: ["": 18]>
RmsNorm_body (x, scale, shift) => (y) {
    wide = Cast<to = 1>(scale)  a = Mul(x, wide)  y = Add(a, shift)
}
<domain: "opfuse", opset_import: ["": 18]>
GroupNormSilu_body (x, target) => (y) { t = Cast<to = 7>(target)  y = Reshape(x, t) }
"""
PLUGIN = 'opfuse.MaskedSoftmax <plugin_namespace = "opfuse">'


def parsed(graph, **weights):
    """A lowered model; ``weights`` are its initializers."""
    model = onnx.parser.parse_model(HEADER + graph + BODIES)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def shared(model):
    """The models of the engines, and the runs of them."""
    made = [name for node in model.graph.node for name in node.output]
    types = dict.fromkeys(made, Typed(1, (4, 4))) | types_of(model)  # of If nothing is known
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    return of_segments(model, cut(model, ranks, lambda node: "").segments, types)


def of_segments(model, segments, types):
    infos = {name: types[name].info(name) for s in segments for name in (*s.inputs, *s.outputs)}
    known = {item.name: numpy_helper.to_array(item).tobytes() for item in model.graph.initializer}
    return merged(model, segments, types, infos, known.__getitem__)


def numbers(runs):
    return [int(run.engine.removeprefix("engines/")) for run in runs]


def engines(model):
    return numbers(shared(model)[1])


def vector(*values):
    return np.array(values, np.float32)


CHAIN = f"""
g (float[b,4] x) => (float[b,4] y) {{
    a = Mul(x, g0)  n = {PLUGIN}(a)  c = Mul(n, g1)  m = {PLUGIN}(c)  y = Mul(m, g2)
}}"""


def test_weights_that_differ_become_inputs():
    weights = {f"g{at}": vector(at, 1, 2, 3) for at in range(3)}
    models, runs = shared(parsed(CHAIN, **weights))
    assert numbers(runs) == [0, 0, 0]
    assert [run.inputs for run in runs] == [("x", "g0"), ("n", "g1"), ("m", "g2")]
    assert [run.outputs for run in runs] == [("a",), ("c",), ("y",)]
    assert {(run.input_ports, run.output_ports) for run in runs} == {
        (("in_0", "weight_0"), ("out_0",))
    }
    (model,) = models
    onnx.checker.check_model(model)
    given = {"in_0": np.ones((2, 4), np.float32), "weight_0": weights["g2"]}
    np.testing.assert_array_equal(OnnxRuntime(model).run(given)[0], [weights["g2"]] * 2)


def test_equal_weights_stay_inside():
    models, runs = shared(parsed(CHAIN, **{f"g{at}": vector(1, 2, 3, 4) for at in range(3)}))
    assert [run.inputs for run in runs] == [("x",), ("n",), ("m",)]
    (model,) = models
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [1, 2, 3, 4]


def test_the_same_model_gives_the_same_bytes_and_no_name_of_a_place():
    weights = {f"g{at}": vector(at, 1, 2, 3) for at in range(3)}
    (first,), _ = shared(parsed(CHAIN, **weights))
    (second,), _ = shared(
        parsed(CHAIN.replace("n =", "other =").replace("(n,", "(other,"), **weights)
    )
    assert first.SerializeToString() == second.SerializeToString()


def test_a_segment_that_is_like_no_other_keeps_its_names():
    models, runs = shared(
        parsed(CHAIN.replace("c = Mul", "c = Add"), g0=vector(1), g1=vector(2), g2=vector(3))
    )
    assert numbers(runs) == [0, 1, 0]
    assert runs[1].input_ports == runs[1].inputs == ("n",)
    assert [node.op_type for node in models[1].graph.node] == ["Add"]


@pytest.mark.parametrize(
    ("graph", "weights"),
    [
        # of other sizes
        (
            CHAIN,
            {"g0": vector(1), "g1": vector(1, 2, 3, 4), "g2": vector(1, 2, 3, 4).reshape(1, 4)},
        ),
        # matrices, which TensorRT lays out when it builds
        (
            CHAIN.replace("Mul", "MatMul"),
            {f"g{at}": np.full((4, 4), at, np.float32) for at in range(3)},
        ),
        # too large to be worth an input
        (
            CHAIN.replace("[b,4]", "[b,70000]"),
            {f"g{at}": np.full(70000, at, np.float32) for at in range(3)},
        ),
        # what has to be a constant: the shape of a tensor
        (
            CHAIN.replace("Mul", "Reshape"),
            {"g0": np.array([-1, 4]), "g1": np.array([2, -1]), "g2": np.array([-1, 2, 2])},
        ),
        # the same behind a cast in a function
        (
            CHAIN.replace("Mul", "opfuse.GroupNormSilu_body"),
            {f"g{at}": vector(*values) for at, values in enumerate(([-1, 4], [2, -1], [4, -1]))},
        ),
        # another operator after the same one
        (
            CHAIN.replace("c = Mul(n, g1)", "h = Mul(n, g1)  c = Exp(h)").replace(
                "y = Mul(m, g2)", "i = Mul(m, g2)  y = Log(i)"
            ),
            {f"g{at}": vector(1, 2, 3, at) for at in range(3)},
        ),
    ],
)
def test_what_differs_in_more_than_weights_stays_apart(graph, weights):
    assert engines(parsed(graph, **weights)) == [0, 1, 2]


@pytest.mark.parametrize(("dim", "expected"), [("b", [0, 0]), ("s", [0, 1])])
def test_dimensions_of_other_names_stay_apart(dim, expected):
    graph = f"""
    g (float[b,4] x, float[{dim},4] z) => (float[b,4] a, float[{dim},4] q) {{
        a = Mul(x, g0)  q = Mul(z, g1)
    }}"""
    model = parsed(graph, g0=vector(1, 2, 3, 4), g1=vector(4, 3, 2, 1))
    segments = [Segment((0,), ("x",), ("a",)), Segment((1,), ("z",), ("q",))]
    _, runs = of_segments(model, segments, types_of(model))
    assert numbers(runs) == expected


def test_a_function_is_looked_into():
    graph = f"""
    g (float[b,4] x) => (float[b,4] y) {{
        a = opfuse.RmsNorm_body(x, s0, h0)  n = {PLUGIN}(a)  y = opfuse.RmsNorm_body(n, s1, h1)
    }}"""
    half = {f"s{at}": vector(at, 1, 2, 3).astype(np.float16) for at in range(2)}
    models, runs = shared(parsed(graph, **half, h0=vector(1), h1=vector(1)))
    assert [run.inputs for run in runs] == [("x", "s0"), ("n", "s1")]
    assert [item.name for item in models[0].graph.initializer] == ["weight_1"]


def test_subgraphs_are_left_alone():
    inner = """If(yes) <
        then_branch = t () => (float[b,4] u) { u = Mul(HERE, g0) },
        else_branch = e () => (float[b,4] v) { v = Identity(HERE) }>"""
    graph = f"""
    g (float[b,4] x, bool yes) => (float[b,4] y) {{
        a = {inner.replace("HERE", "x")}  n = {PLUGIN}(a)  y = {inner.replace("HERE", "n")}
    }}"""
    assert engines(parsed(graph, g0=vector(1, 2, 3, 4))) == [0, 1]


def test_a_weight_that_a_subgraph_of_a_function_reads_stays_inside():
    """What stands in the subgraph, here a Reshape, may want a constant."""
    graph = f"""
    g (float[4,4] x, bool yes) => (float[4,4] y) {{
        a = opfuse.SiluMul_body(x, yes, g0)  n = {PLUGIN}(a)  y = opfuse.SiluMul_body(n, yes, g1)
    }}"""
    function = """
    <domain: "opfuse", opset_import: ["": 18]>
    SiluMul_body (x, yes, target) => (y) {
        y = If(yes) <
            then_branch = t () => (u) { s = Cast<to = 7>(target)  u = Reshape(x, s) },
            else_branch = e () => (v) { v = Identity(x) }>
    }"""
    weights = {"g0": vector(-1, 4), "g1": vector(2, -1)}
    model = onnx.parser.parse_model(HEADER + graph + BODIES + function)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    assert engines(model) == [0, 1]
