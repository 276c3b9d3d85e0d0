"""The estimate of a bundle's memory beside TensorRT's for the whole model."""

from __future__ import annotations

import pytest

from opfuse.engine import footprint
from opfuse.engine.footprint import CONTEXT, exceeds, lives, of_tensorrt
from opfuse.engine.profile import resolve
from opfuse.engine.tensors import types_of
from tests.engine.test_cut import parsed
from tests.engine_models import plugins

NORM = 'opfuse.RmsNorm <plugin_namespace = "opfuse">'
ENDS = "float[8,64,64] x, float[64,64] w, float[64] g"


def model(body: str):
    return parsed(f"g ({ENDS}) => (float[8,64,64] y) {{ {body} }}", ("RmsNorm",))


def profile(made):
    return resolve(made.graph, ({}, {}, {}))


def test_what_products_read_and_write_is_kept_and_the_rest_fused():
    made = model("a = MatMul(x, w)  r = Relu(a)  s = Neg(r)  c = MatMul(s, w)  y = Neg(c)")
    block = 8 * 64 * 64 * 4
    assert of_tensorrt(made, profile(made)) == 2 * block  # a and s, then s and c
    made = model("a = Relu(x)  y = Neg(a)")
    assert of_tensorrt(made, profile(made)) == 0


def test_plugins_count_as_what_tensorrt_would_run():
    """The body of a fused op has products that the op itself does not show."""
    text = f"g ({ENDS}) => (float[8,64,64] y) {{ y = {NORM}(x) }}"
    made = parsed(text, ("RmsNorm",))
    assert of_tensorrt(made, profile(made)) == 0
    inner = model("t = MatMul(x, x)  y = MatMul(t, x)").graph.node
    (function,) = made.functions
    del function.node[:]
    function.node.extend(inner)
    assert of_tensorrt(made, profile(made)) == 8 * 64 * 64 * 4


def test_sizes_that_are_not_known_are_left_out():
    made = parsed("g (float[n,4] x) => (float[] y) { m = NonZero(x)  y = Cast<to = 1>(m) }", ())
    every = dict.fromkeys(("x", "m"), (0, 1))
    (life,) = lives(every, types_of(made), profile(made))
    assert (life.name, life.bytes) == ("x", 8 * 4 * 4)


@pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")
@pytest.mark.parametrize("room", [0, 1])
def test_a_second_engine_has_to_fit(tmp_path, monkeypatch, room):
    made = model(f"a = Relu(x)  n = {NORM}(a, g)  c = Exp(n)  m = {NORM}(c, g)  y = Neg(m)")
    whole = CONTEXT + 2 * 8 * 64 * 64 * 4
    monkeypatch.setattr(footprint, "of_tensorrt", lambda *_: whole + CONTEXT - 1 + room)
    short = exceeds(made, tmp_path, plugins(), profile(made), around_attention=False)
    assert short is (room == 0)
