"""Norms are told that their weights are constant where they are, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from opfuse.runtime import abi
from opfuse.runtime.abi import CONSTANT_WEIGHTS
from opfuse.runtime.schedule import PluginStep, Schedule, Value, ViewStep
from tests.engine_models import NORM, NORM_BODY, plugins
from tests.runtime import host

needs_library = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")

MODEL = f"""
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
g (float[b,4] x, float[4] given) => (float[b,4] y) {{
    a = {NORM}(x, constant)  b1 = {NORM}(a, given)
    computed = Mul(given, constant)  c = {NORM}(b1, computed)  y = {NORM}(c, constant)
}}
{NORM_BODY}"""
FEEDS = {"x": np.ones((2, 4), np.float32), "given": np.array([1, 0, 2, 3], np.float32)}
NODES = {"a": 1, "b1": 0, "c": 0, "y": 1}  # the norms of MODEL, and what they are told


@pytest.fixture
def bundle(tmp_path):
    model = onnx.parser.parse_model(MODEL)
    for node in model.graph.node:
        node.name = node.output[0]
    weights = numpy_helper.from_array(np.array([1, 2, -3, 0.5], np.float32), "constant")
    model.graph.initializer.append(weights)
    host.bundle(model, tmp_path, plugins(), tmp_path / "x.opfuse")
    return tmp_path / "x.opfuse", model


@pytest.fixture
def made(monkeypatch):
    """The attributes of every plugin that is made, as the library gets them."""
    found = []
    make = abi.Plugin.__init__

    def told(self, library, name, attributes):
        found.append((name, dict(attributes)))
        make(self, library, name, attributes)

    monkeypatch.setattr(abi.Plugin, "__init__", told)
    return found


@needs_library
def test_constants_are_told_of_and_what_is_fed_or_computed_is_not(bundle, made, monkeypatch):
    with host.open_engine(monkeypatch, *bundle) as engine:
        steps = [step.outputs[0] for step in engine.schedule.plugins()]
        assert steps == list(NODES)
        assert np.isfinite(engine.run(FEEDS)["y"]).all()
    assert [given.get(CONSTANT_WEIGHTS) for _, given in made] == list(NODES.values())


@needs_library
def test_a_library_without_the_attribute_is_not_told(bundle, made, monkeypatch):
    ops = abi.ops

    def older(library):
        return tuple(
            replace(op, attributes={k: v for k, v in op.attributes.items() if k == "epsilon"})
            for op in ops(library)
        )

    monkeypatch.setattr(abi, "ops", older)
    with host.open_engine(monkeypatch, *bundle) as engine:
        engine.run(FEEDS)
    assert [set(given) for _, given in made] == [{"epsilon"}] * len(NODES)


@needs_library
def test_the_norms_of_the_library_that_have_it_are_those_of_the_runtime():
    having = {op.name for op in abi.ops(abi.load(plugins())) if CONSTANT_WEIGHTS in op.attributes}
    told = {op for op in having if CONSTANT_WEIGHTS in attributes(op, ("x", "x", "w", "w"))}
    assert told == having == {"RmsNorm", "AddRmsNorm", "AddLayerNorm"}


def attributes(op, reads, own=(), **places):
    """What the first plugin of a schedule is made with; ``places`` are further values."""
    steps = [ViewStep(("w",), ("view",), (-1,)), PluginStep(op, op, dict(own), reads, ("y", "s"))]
    names = {"inputs": ["x"], "outputs": ["y"], "between": ["s", "view"], "constants": ["w", "v"]}
    names = {key: [*found, *places.get(key, ())] for key, found in names.items()}
    values = {key: tuple(Value(name, 1, (4,)) for name in found) for key, found in names.items()}
    schedule = Schedule(**values, steps=tuple(steps))
    return schedule.attributes(steps[1])


@pytest.mark.parametrize(
    ("op", "reads", "told"),
    [
        ("RmsNorm", ("x", "w"), 1),
        ("RmsNorm", ("w", "x"), 0),
        ("RmsNorm", ("x", "view"), 0),
        ("AddRmsNorm", ("x", "s", "w"), 1),
        ("AddRmsNorm", ("x", "w", "s"), 0),
        ("AddLayerNorm", ("x", "x", "w", "v"), 1),
        ("AddLayerNorm", ("x", "x", "w", "x"), 0),
        ("AddLayerNorm", ("x", "x", "x", "w"), 0),
        ("AddLayerNorm", ("x", "x", "w", "v", "v"), 1),
        ("AddLayerNorm", ("x", "x", "w", "v", "s"), 0),
    ],
)
def test_every_weight_has_to_be_constant(op, reads, told):
    assert attributes(op, reads)[CONSTANT_WEIGHTS] == told


@pytest.mark.parametrize("place", ["inputs", "outputs", "between"])
def test_a_constant_that_is_something_else_too_is_none(place):
    assert attributes("RmsNorm", ("x", "w"), **{place: ["w"]})[CONSTANT_WEIGHTS] == 0


def test_what_the_bundle_says_does_not_count():
    own = {CONSTANT_WEIGHTS: 1, "epsilon": 0.5}
    assert attributes("RmsNorm", ("x", "x"), own) == {CONSTANT_WEIGHTS: 0, "epsilon": 0.5}


def test_other_ops_are_told_nothing():
    assert attributes("GatedAct", ("x", "w"), {"activation": "silu"}) == {"activation": "silu"}
