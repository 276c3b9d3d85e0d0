"""Several steps of a bundle that run one engine: loaded once, one context, every step itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from opfuse.errors import EngineError, InputError
from opfuse.runtime.bundle import Bundle
from opfuse.runtime.schedule import EngineStep
from opfuse.runtime.timing import step_times
from tests.engine_models import NORM, NORM_BODY, plugins
from tests.runtime import host

pytestmark = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")

MODEL = f"""
<ir_version: 10, opset_import: ["": 18, "opfuse": 1]>
g (float[b,4] x) => (float[b,4] y) {{
    a = Mul(x, g0)  n = {NORM}(a, one)  c = Mul(n, g1)  m = {NORM}(c, one)  y = Mul(m, g2)
}}
{NORM_BODY}"""
WEIGHTS = [np.array([at + 1, 2, -3, 0.5], np.float32) for at in range(3)]
TITLES = ["engines/0 -> 'a'", "'n' (RmsNorm)", "engines/0 -> 'c'", "'m' (RmsNorm)"]
TITLES += ["engines/0 -> 'y'"]


def expected(x):
    """What every step writes."""
    found = {}
    for step, name in enumerate(("a", "c", "y")):
        x = found[name] = x * WEIGHTS[step]
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
        found["nmz"[step]] = x
    return found


@pytest.fixture
def bundle(tmp_path):
    model = onnx.parser.parse_model(MODEL)
    for node in model.graph.node:
        node.name = node.output[0]
    for at, values in enumerate(WEIGHTS):
        model.graph.initializer.append(numpy_helper.from_array(values, f"g{at}"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "one"))
    info, _ = host.bundle(model, tmp_path, plugins(), tmp_path / "x.opfuse")
    return tmp_path / "x.opfuse", model, info


@pytest.fixture
def device():
    return host.HostDevice()


@pytest.fixture
def engine(bundle, device, monkeypatch):
    with host.open_engine(monkeypatch, *bundle[:2], device) as engine:
        yield engine


def test_one_engine_is_in_the_file_for_three_segments(bundle):
    path, _, info = bundle
    opened = Bundle.open(path)
    assert info.notes[0] == "3 segments, 1 of them distinct, and 2 plugin launches"
    assert [name for name in opened.names() if name.startswith("engines/")] == ["engines/0"]
    assert {value.name for value in opened.schedule.constants} == {"g0", "g1", "g2", "one"}
    steps = [step for step in opened.schedule.steps if isinstance(step, EngineStep)]
    assert [step.inputs for step in steps] == [("x", "g0"), ("n", "g1"), ("m", "g2")]


def test_one_context_is_made(bundle, monkeypatch):
    made = []
    create = host.HostEngine.create_execution_context
    monkeypatch.setattr(
        host.HostEngine, "create_execution_context", lambda *a: made.append(a) or create(*a)
    )
    with host.open_engine(monkeypatch, *bundle[:2]) as engine:
        engine.run({"x": np.ones((2, 4), np.float32)})
    assert len(made) == 1


@pytest.mark.parametrize("graphs", [True, False])
def test_every_run_has_its_own_tensors(engine, graphs):
    rng = np.random.default_rng(0)
    for rows in (3, 7, 3, 1, 7):
        x = rng.standard_normal((rows, 4)).astype(np.float32)
        found = engine.run({"x": x}, graphs=graphs)["y"]
        np.testing.assert_allclose(found, expected(x)["y"], rtol=1e-5)


def test_every_step_is_told_by_its_name(engine):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert [title for title, _ in engine.written_by()] == TITLES
    want = expected(x)
    for name, values in engine.trace({"x": x}).items():
        np.testing.assert_allclose(values, want[name], rtol=1e-5, err_msg=name)


def test_the_layers_of_every_step_are_its_own(engine):
    with engine.place() as place:
        layout = place.layout({"x": (2, 4)}, staged=True)
        steps = step_times(engine, place, layout, 1)
    assert [step.what for step in steps] == TITLES
    assert [step.layers for step in steps] == [
        () if step.plugin else (("a MatMul", 2.0),) for step in steps
    ]


def test_a_step_that_tensorrt_refuses_is_named(engine, monkeypatch):
    runs = []
    monkeypatch.setattr(
        host.Context, "execute_async_v3", lambda *_: len(runs) < 1 and not runs.append(1)
    )
    with pytest.raises(EngineError, match="to run engines/0 -> 'c'"):
        engine.run({"x": np.ones((2, 4), np.float32)}, graphs=False)


def test_an_engine_in_two_shapes_at_once_is_refused(engine, monkeypatch):
    """Dimensions of one name that are not of one size; a plugin that halves plays that."""
    infer = host.HostPlugin.infer

    def halved(self, inputs, outputs):
        (made,) = infer(self, inputs, outputs)
        return [type(made)(made.dtype, (made.shape[0] // 2, 4))]

    monkeypatch.setattr(host.HostPlugin, "infer", halved)
    with pytest.raises(InputError, match=r"engines/0 would run in the shapes .*2, 4.* and .*1, 4"):
        engine.run({"x": np.ones((2, 4), np.float32)})
