"""Cutting at plugin nodes: as few segments as there have to be, shapes kept inside, no lone ops."""

from __future__ import annotations

import onnx
import pytest

from opfuse.engine.cut import SPLIT, Segment, cut
from opfuse.engine.parts import extract
from opfuse.engine.tensors import types_of
from opfuse.errors import EngineError
from tests.engine_models import add_rms_norm

HEADER = """
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
"""
BODY = """
<domain: "opfuse", opset_import: ["": 18]>
Norm_body (x) => (y) { y = Softmax(x) }
"""


def parsed(graph, bodies=("Norm",)):
    """A lowered model: ``opfuse.Norm`` with the attribute is a plugin."""
    functions = "".join(BODY.replace("Norm", name) for name in bodies)
    return onnx.parser.parse_model(HEADER + graph + functions)


def plan(model, refuses=lambda node: ""):
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    return cut(model, ranks, refuses)


def spelt(model, result):
    """Each step in words: the op types of a segment, or the plugin's output."""
    nodes = model.graph.node
    return [
        " ".join(nodes[index].op_type for index in step.nodes)
        if isinstance(step, Segment)
        else f"-> {nodes[step].output[0]}"
        for step in result.steps
    ]


NORM = 'opfuse.Norm <plugin_namespace = "opfuse">'


def test_a_chain_of_plugins_gives_one_segment_between_each():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w) => (float[b,4] y) {{
            a = MatMul(x, w)  n = {NORM}(a)  c = MatMul(n, w)  m = {NORM}(c)  y = MatMul(m, w)
        }}""")
    result = plan(model)
    assert spelt(model, result) == ["MatMul", "-> n", "MatMul", "-> m", "MatMul"]
    assert result.segments[1] == Segment((2,), ("n", "w"), ("c",))
    assert result.left == {}


def test_independent_branches_of_one_depth_share_a_segment():
    model = parsed(f"""
        g (float[b,4] x, float[b,4] z, float[4,4] w) => (float[b,4] y, float[b,4] q) {{
            a = MatMul(x, w)  n = {NORM}(a)  c = MatMul(n, w)
            d = MatMul(z, w)  m = {NORM}(d)  e = MatMul(m, w)
            y = Add(c, e)  q = MatMul(z, w)
        }}""")
    result = plan(model)
    assert spelt(model, result) == ["MatMul MatMul MatMul", "-> n", "-> m", "MatMul MatMul Add"]
    assert result.segments[0].outputs == ("a", "d", "q")


def test_a_plugin_that_reads_a_plugin_needs_no_segment_between():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w) => (float[b,4] y) {{
            a = MatMul(x, w)  n = {NORM}(a)  m = {NORM}(n)  y = MatMul(m, w)
        }}""")
    assert spelt(model, plan(model)) == ["MatMul", "-> n", "-> m", "MatMul"]


def test_a_plugin_on_the_inputs_alone_runs_first_and_cuts_nothing():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w) => (float[b,4] y) {{
            n = {NORM}(x)  a = MatMul(x, w)  c = MatMul(n, w)  y = Add(a, c)
        }}""")
    assert spelt(model, plan(model)) == ["-> n", "MatMul MatMul Add"]


def test_shape_arithmetic_is_copied_into_every_segment_that_needs_it():
    model = parsed(f"""
        g (float[b,s,4] x, float[4,4] w) => (float[b,s,4] y) {{
            shape = Shape(x)
            first = Constant<value_ints = [0]>()
            b = Gather(shape, first)
            minus = Constant<value_ints = [-1]>()
            wide = Constant<value_ints = [4]>()
            target = Concat<axis = 0>(b, minus, wide)
            a = MatMul(x, w)  r = Reshape(a, target)  n = {NORM}(r)
            c = MatMul(n, w)  y = Reshape(c, target)
        }}""")
    result = plan(model)
    names = "Shape Constant Gather Constant Constant Concat"
    assert spelt(model, result) == [
        f"{names} MatMul Reshape",
        "-> n",
        f"{names} MatMul Reshape",
    ]
    assert result.segments[0].outputs == ("r",)
    assert result.segments[1].inputs == ("n", "w", "x")  # x for its shape alone


def test_a_shape_that_is_an_output_is_computed_once_and_kept():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w) => (float[b,4] y, int64[2] shape) {{
            shape = Shape(x)  a = MatMul(x, w)  n = {NORM}(a)  c = MatMul(n, w)
            y = Reshape(c, shape)
        }}""")
    result = plan(model)
    assert result.segments[0].outputs == ("shape", "a")
    assert spelt(model, result)[2] == "Shape MatMul Reshape"


ATTENTION = """
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
g (float[b,4] x, float[4,4] w) => (float[b,4] y) {
    a = MatMul(x, w)  n = opfuse.Norm <plugin_namespace = "opfuse">(a)
    p = MatMul(n, w)  t = opfuse.FlashAttention_body(p)
    o = MatMul(t, w)  m = opfuse.Norm <plugin_namespace = "opfuse">(o)
    u = MatMul(m, w)  s = opfuse.Norm <plugin_namespace = "opfuse">(u)
    y = MatMul(s, w)
}
"""


def test_another_form_of_a_constant_is_made_where_it_is_read():
    """A head that shares its weight with the embedding; what a plugin reads is made once."""
    model = parsed(f"""
        g (int64[s] ids) => (float[s,4] y, float[s,1] z)
        <int64[1] one = {{1}}, float[4,4] w = {{{",".join("1" * 16)}}}, float[4] v = {{1,1,1,1}}> {{
            e = Gather(w, ids)  n = {NORM}(e)  t = Transpose(w)  y = MatMul(n, t)
            u = Unsqueeze(v, one)  m = {NORM}(u)  z = MatMul(n, m)
        }}""")
    result = plan(model)
    first, last = result.segments
    assert [model.graph.node[i].op_type for i in last.nodes] == ["Transpose", "MatMul", "MatMul"]
    assert first.outputs == ("e", "u")
    assert "t" not in last.inputs


def test_attention_that_tensorrt_keeps_is_not_cut_off_unless_asked_for():
    bodies = "".join(BODY.replace("Norm", name) for name in ("Norm", "FlashAttention"))
    model = onnx.parser.parse_model(ATTENTION + bodies)
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
    forced = plan(onnx.ModelProto.FromString(model.SerializeToString()))
    assert (len(forced.segments), forced.left) == (4, {})
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    result = cut(model, ranks, lambda node: "", around_attention=False)
    assert len(result.segments) == 1
    assert set(result.left.values()) == {SPLIT}
    assert len(result.left) == 3  # the cut behind would end the network that it is fused in


def test_attention_that_is_a_plugin_cuts():
    bodies = "".join(BODY.replace("Norm", name) for name in ("Norm", "FlashAttention"))
    text = ATTENTION.replace(
        "opfuse.FlashAttention_body(", 'opfuse.FlashAttention <plugin_namespace = "opfuse">('
    )
    model = onnx.parser.parse_model(text + bodies)
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    result = cut(model, ranks, lambda node: "", around_attention=False)
    assert (len(result.segments), result.left) == (5, {})


def test_a_node_that_the_plugin_refuses_is_given_back_with_the_reason():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w) => (float[b,4] y) {{
            a = MatMul(x, w)  n = {NORM}(a)  y = MatMul(n, w)
        }}""")
    model.graph.node[1].name = "norm"
    result = plan(model, lambda node: "not this type")
    assert result.left == {"norm": "not this type"}
    assert spelt(model, result) == ["MatMul Norm_body MatMul"]


def test_what_a_subgraph_reads_from_outside_crosses_a_cut():
    model = parsed(f"""
        g (float[b,4] x, float[4,4] w, bool c) => (float[b,4] y) {{
            a = MatMul(x, w)
            n = {NORM}(a)
            m = MatMul(n, w)
            y = If (c) <
                then_branch = t () => (float[b,4] p) {{ p = Add(m, a) }},
                else_branch = e () => (float[b,4] q) {{ q = Mul(m, m) }}
            >
        }}""")
    result = plan(model)
    assert set(result.segments[0].outputs) == {"a"}
    assert set(result.segments[1].inputs) == {"n", "w", "c", "a"}


def test_a_model_without_plugins_is_one_segment():
    model = parsed(
        "g (float[b,4] x, float[4,4] w) => (float[b,4] y) { a = Relu(x)  y = MatMul(a, w) }", ()
    )
    assert spelt(model, plan(model)) == ["Relu MatMul"]


def test_a_segment_is_a_model_of_its_own():
    made = add_rms_norm(2)
    from opfuse.stages.lower import lower

    lower(made, "plugin", {"AddRmsNorm"})
    result = plan(made)
    types = types_of(made)
    (first, second) = result.segments
    infos = {n: types[n].info(n) for s in result.segments for n in (*s.inputs, *s.outputs)}
    ends = ([infos[n] for n in names] for names in (second.inputs, second.outputs))
    model = extract(made, second.nodes, *ends)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.initializer] == ["weight"]
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim][:2] == [
        "batch",
        "seq",
    ]
    assert list(model.functions) == []
    assert first.outputs == ("projected.0",)


SUM = 'opfuse.AllReduce <plugin_namespace = "opfuse", group_size = 2>'
RANK = f"g (float[b,4] x, float[4,4] w) => (float[b,4] y) {{{{ a = MatMul(x, w)  y = {SUM}(a) }}}}"


def test_attention_beside_it_gives_no_collective_back_to_tensorrt():
    """There is no body of it that TensorRT could run."""
    model = parsed(
        f"""
        g (float[b,2,s,8] q) => (float[b,2,s,8] y) {{
            n = {SUM}(q)  a = opfuse.FlashAttention_body(n)  y = {SUM}(a)
        }}""",
        ("AllReduce", "FlashAttention"),
    )
    result = cut(model, {}, lambda node: "", around_attention=False)
    assert spelt(model, result) == ["-> n", "FlashAttention_body", "-> y"]
    assert result.left == {}


def test_a_collective_that_the_library_cannot_run():
    model = parsed(RANK.format(), ("AllReduce",))
    with pytest.raises(EngineError, match=r"AllReduce.* has to be a plugin here: no float64"):
        plan(model, lambda node: "no float64")
