"""Nodes that move no byte: names for memory between plugins, copies of nothing inside segments."""

from __future__ import annotations

import pytest

from opfuse.engine.cut import View, cut
from opfuse.engine.tensors import types_of
from opfuse.engine.views import views
from opfuse.errors import InputError
from opfuse.runtime.schedule import Schedule, Value, ViewStep
from tests.engine.test_cut import parsed, spelt

SHAPED = "g (float[b,4] x, float[4,4] w, float[4] g) => (float[b,4] y)"
PLUGIN = 'opfuse.RmsNorm <plugin_namespace = "opfuse">'


def targets(statement: str, shape: str) -> list[tuple[int, ...]]:
    text = f"g (float[{shape}] x) => (float[] y) {{ {statement} }}"
    model = parsed(text, ())
    return list(views(model, types_of(model)).values())


@pytest.mark.parametrize(
    ("statement", "shape", "target"),
    [
        ("y = Transpose<perm = [0, 2, 1, 3]>(x)", "b, 12, 1, 64", (0, 1, 12, 64)),
        ("y = Transpose<perm = [1, 0, 2]>(x)", "1, s, 64", (-1, 1, 64)),
        ("a = Constant<value_ints = [1]>() y = Unsqueeze(x, a)", "b, s", (0, 1, -1)),
        ("a = Constant<value_ints = [0, 0, 8]>() y = Reshape(x, a)", "b, s, 2, 4", (0, 0, 8)),
        ("a = Constant<value_ints = [1]>() y = Squeeze(x, a)", "b, 1, s", (0, -1)),
        ("y = Flatten<axis = 1>(x)", "b, 3, 4", (0, 12)),
    ],
)
def test_what_keeps_the_order_of_elements_is_a_view(statement, shape, target):
    assert targets(statement, shape) == [target]


@pytest.mark.parametrize(
    ("statement", "shape"),
    [
        ("y = Transpose<perm = [0, 2, 1, 3]>(x)", "b, 12, s, 64"),
        ("y = Transpose(x)", "2, 3"),
        ("y = Cast<to = 10>(x)", "2, 3"),
        ("y = Neg(x)", "2, 3"),
        # Two sizes that only a computation knows are more than a target can leave open.
        ("a = Shape(x) y = Reshape(x, a) ", "a"),
    ],
)
def test_what_moves_elements_is_none(statement, shape):
    assert targets(statement, shape)[: "Shape" not in statement] == []


def planned(body: str, graph: str = SHAPED):
    model = parsed(f"{graph} {{ {body} }}", ("RmsNorm",))
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    return model, cut(model, ranks, lambda node: "", views=views(model, types))


def words(model, result):
    shown = [
        f"{step.name} is {step.source} as {list(step.target)}" if isinstance(step, View) else step
        for step in result.steps
    ]
    plain = [step for step in result.steps if not isinstance(step, View)]
    texts = iter(spelt(model, type(result)(tuple(plain), {})))
    return [step if isinstance(step, str) else next(texts) for step in shown]


FLAT = "t = Constant<value_ints = [-1, 2, 2]>() back = Constant<value_ints = [-1, 4]>()"


def test_plugins_with_views_between_need_no_segment():
    model, result = planned(f"""
        {FLAT}
        a = MatMul(x, w)  n = {PLUGIN}(a, g)  v = Reshape(n, t)  m = {PLUGIN}(v, g)
        r = Reshape(m, back)  y = MatMul(r, w)""")
    assert words(model, result) == [
        "MatMul",
        "-> n",
        "v is n as [0, 2, 2]",
        "-> m",
        "Constant Reshape MatMul",
    ]
    assert sorted(result.segments[1].inputs) == ["m", "w"]
    assert result.left == {}


def test_a_segment_hands_over_what_the_view_shows():
    model, result = planned(f"""
        {FLAT}
        a = MatMul(x, w)  v = Reshape(a, t)  n = {PLUGIN}(v, g)  r = Reshape(n, back)
        c = MatMul(r, w)  d = Reshape(v, back)  y = Add(c, d)""")
    assert words(model, result) == [
        "MatMul",
        "v is a as [0, 2, 2]",
        "-> n",
        "Constant Constant Reshape Reshape MatMul Reshape Add",
    ]
    assert result.segments[0].outputs == ("a",)


def test_a_chain_of_views_is_resolved_in_its_order():
    model, result = planned(f"""
        {FLAT}
        a = MatMul(x, w)  v = Reshape(a, t)  u = Reshape(v, back)  n = {PLUGIN}(u, g)
        y = MatMul(n, w)""")
    assert words(model, result)[1:3] == ["v is a as [0, 2, 2]", "u is v as [0, 4]"]


def test_a_view_that_is_an_output_is_written():
    graph = SHAPED.replace("(float[b,4] y)", "(float[b,4] y, float[b,2,2] v)")
    _model, result = planned(
        f"{FLAT} a = MatMul(x, w)  v = Reshape(a, t)  n = {PLUGIN}(a, g)  y = MatMul(n, w)", graph
    )
    assert result.segments[0].outputs == ("a", "v")


def test_an_output_that_a_plugin_reads_is_written_once():
    graph = SHAPED.replace("(float[b,4] y)", "(float[b,4] y, float[b,2,2] v)")
    model, result = planned(
        f"{FLAT} a = MatMul(x, w)  v = Reshape(a, t)  u = Reshape(v, back)  y = {PLUGIN}(u, g)",
        graph,
    )
    assert words(model, result) == ["Constant MatMul Reshape", "u is v as [0, 4]", "-> y"]
    assert result.segments[0].outputs == ("v",)


def test_shapes_of_views():
    step = ViewStep(("x",), ("y",), (0, -1, 4))
    assert step.shape((3, 2, 8)) == (3, 4, 4)
    assert step.shape((3, 0, 8)) == (3, 0, 4)
    for source in ((3, 2, 3), (1, 2)):
        with pytest.raises(InputError, match="cannot be seen as"):
            step.shape(source)
    with pytest.raises(InputError):
        ViewStep(("x",), ("y",), (0, 5)).shape((3, 4))


def test_the_memory_of_a_view_is_that_of_its_source():
    value = Value("h", 1, ("b", 4))
    steps = (
        ViewStep(("h",), ("v",), (0, 2, 2)),
        ViewStep(("v",), ("u",), (0, 4)),
        ViewStep(("u",), ("w",), (0, 4)),
    )
    between = (value, *(Value(name, 1, ("b", 4)) for name in "vuw"))
    schedule = Schedule((), (), between, (), steps)
    assert schedule.lifetimes() == {"h": (0, 2)}
    ready = Schedule((value,), (Value("w", 1, ("b", 4)),), between[1:3], (), steps)
    assert Schedule.from_dict(ready.as_dict()) == ready
