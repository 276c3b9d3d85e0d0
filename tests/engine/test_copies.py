"""What only moves data: which nodes, and which levels of a cut need no TensorRT for it."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

from opfuse.engine.copies import copies
from opfuse.engine.cut import Copy, Segment, View, cut
from opfuse.engine.tensors import types_of
from opfuse.engine.views import views
from tests.engine.test_cut import parsed

NORM = 'opfuse.RmsNorm <plugin_namespace = "opfuse">'
PAST = "float[b,2,past,4] old"


def found(statement: str, inputs: str, **constants):
    model = parsed(f"g ({inputs}) => (float[] y) {{ {statement} }}", ())
    for name, numbers in constants.items():
        weight = numpy_helper.from_array(onnx.numpy_helper.np.array(numbers, "int64"), name)
        model.graph.initializer.append(weight)
    return [(move.op, dict(move.numbers)) for move in copies(model, types_of(model)).values()]


@pytest.mark.parametrize(
    ("statement", "inputs", "numbers"),
    [
        ("y = Concat<axis = -2>(a, c)", "float[b,s,4] a, float[b,t,4] c", {"axis": 1}),
        ("y = Transpose<perm = [0, 2, 1, 3]>(a)", "float[b,s,2,4] a", {"perm": (0, 2, 1, 3)}),
        ("y = Split<axis = 1>(a, two)", "float[b,2,4] a", {"axis": 1, "sizes": (2,)}),
        (
            "y = Slice(a, two, six, one)",
            "float[b,9,4] a",
            {"starts": (0, 2, 0), "ends": (1 << 62, 6, 1 << 62), "steps": (1, 1, 1)},
        ),
    ],
)
def test_moves(statement, inputs, numbers):
    ((op, made),) = found(statement, inputs, one=[1], two=[2], six=[6])
    assert (op, made) == (statement.split("= ")[1].split("<")[0].split("(")[0], numbers)


@pytest.mark.parametrize(
    ("statement", "inputs"),
    [
        ("y = Concat<axis = 1>(a, c)", "float[b,s] a, float[b,t] c"),  # 4 bytes of s may be all
        ("y = Transpose(a)", "float[8,8] a"),
        ("y = Transpose<perm = [0, 2, 1]>(a)", "float[b,s,4] a"),
        ("y = Slice(a, two, six, two, two)", "float[b,4,9] a"),
        ("y = Slice(a, six, two, one, down)", "float[b,9,4] a"),
        ("y = Slice(a, where, six, one)", "float[b,9,4] a, int64[1] where"),
        ("y = Concat<axis = 0>(a, c)", "int4[2,64] a, int4[2,64] c"),
        ("y = Neg(a)", "float[b,4] a"),
    ],
)
def test_what_a_copy_would_be_slow_at_or_cannot_do_is_none(statement, inputs):
    assert found(statement, inputs, one=[1], two=[2], six=[6], down=[-1]) == []


def planned(body: str, graph: str):
    model = parsed(f"{graph} {{ {body} }}", ("RmsNorm",))
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    moves = copies(model, types)
    seen = views(model, types)
    result = cut(model, ranks, lambda node: "", views=seen, copies=moves)
    return model, [_spelt(model, step) for step in result.steps]


def _spelt(model, step):
    nodes = model.graph.node
    if isinstance(step, View):
        return f"{step.name} is {step.source}"
    if isinstance(step, Copy):
        return "copy " + " ".join(nodes[index].output[0] for index in step.nodes)
    if isinstance(step, Segment):
        return "TensorRT " + " ".join(nodes[index].output[0] for index in step.nodes)
    return nodes[step].output[0]


CACHE = (
    f"g (float[b,2,new,4] x, {PAST}, {PAST}2) => (float[b,2,t,4] k, float[b,2,t,4] v, float[] y)"
)


def test_a_level_that_only_moves_data_is_one_copy():
    _, steps = planned(
        f"""n = {NORM}(x, w)  k = Concat<axis = 2>(old, n)  v = Concat<axis = 2>(old2, n)
            y = {NORM}(k, w)""",
        CACHE,
    )
    assert steps == ["n", "copy k v", "y"]


def test_a_level_with_anything_else_is_a_segment():
    _, steps = planned(
        f"n = {NORM}(x, w)  k = Concat<axis = 2>(old, n)  v = Neg(n)  y = {NORM}(k, w)", CACHE
    )
    assert steps == ["n", "TensorRT k v", "y"]


def test_a_copy_waits_for_what_another_one_makes_and_reads_views():
    _, steps = planned(
        f"""n = {NORM}(x, w)  k = Concat<axis = 2>(old, n)
            a = Constant<value_ints = [0, 2, -1, 2, 2]>()  r = Reshape(k, a)
            t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = {NORM}(t, w)""",
        CACHE.replace("float[b,2,t,4] v, ", ""),
    )
    assert steps == ["n", "copy k", "r is k", "copy t", "y"]


def test_what_computes_with_sizes_is_no_data():
    _, steps = planned(
        f"""s = Shape(x)  d = Shape(old)  k = Concat<axis = 0>(s, d)
            a = Neg(x)  n = {NORM}(a, w)  v = Concat<axis = 2>(old, n)  y = {NORM}(v, w)""",
        CACHE.replace("float[b,2,t,4] k", "int64[8] k"),
    )
    assert steps == ["TensorRT s d k a", "n", "copy v", "y"]


def test_without_a_plugin_nothing_is_copied():
    _, steps = planned("k = Concat<axis = 2>(old, x)  v = Identity(x)  y = Identity(x)", CACHE)
    assert steps == ["TensorRT k v y"]
