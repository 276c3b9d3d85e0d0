"""`opfuse bench` and `opfuse verify` on engines, on a GPU that is none."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from rich.console import Console

from opfuse.config import Config
from opfuse.engine import gpu
from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.numerics import engine as comparing
from opfuse.numerics.handover import Handover
from opfuse.progress import Progress
from opfuse.runtime import library, timing
from opfuse.runtime.bundle import Bundle
from opfuse.runtime.engine import Engine
from opfuse.stages.bench import Bench, bench
from opfuse.stages.bench_plot import PRODUCTS, parts_of, write_plot
from opfuse.stages.bench_text import render_bench
from opfuse.stages.verify import verify
from tests.engine_models import ROOT, plugins
from tests.runtime import host

pytestmark = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")

LLAMA = ROOT / "models" / "llama.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    ops = frozenset(op.name for op in library.describe(plugins()).ops)
    model = host.lowered(LLAMA, folder, ops)
    host.bundle(model, folder, plugins(), folder / "model.opfuse")
    return folder / "model.opfuse", model


@pytest.fixture
def device(made, monkeypatch):
    """The engine is loaded on this device by whoever loads it."""
    path, model = made
    device = host.HostDevice()

    def load(file, *, plugins=None, **options):
        assert (file, options.pop("device", 0)) == (path, 0)
        return host.open_engine(monkeypatch, path, model, device, **options)

    monkeypatch.setattr(Engine, "load", staticmethod(load))
    monkeypatch.setattr(timing, "open_device", lambda index: device)
    return device


def test_a_measurement(made, device):
    shapes = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (1, 9))
    found = timing.measure(made[0], shapes, 5, 2, 0)
    assert found.shapes == shapes
    assert (found.segments, found.plugins) == (10, 13)
    assert [step.plugin for step in found.steps].count(True) == 13
    assert found.eager.median_us == found.graph.p99_us == 1.0  # of the test's clock
    assert found.peak_bytes >= found.arena_bytes > 0
    assert found.others_bytes == 0
    assert found.load_s < found.first_result_s
    assert 0 < found.largest < 1e4
    assert device.live == {}


def test_no_context_is_captured_that_had_a_profiler(made, device):
    """TensorRT for RTX 1.4 makes graphs of it that CUDA dies of; the test's contexts refuse."""
    names = ("input_ids", "attention_mask", "position_ids")
    with Engine.load(made[0]) as engine:
        for shape in ((1, 5), (2, 3), (1, 5)):
            arrays = timing.inputs_of(engine, dict.fromkeys(names, shape), 0)
            found = engine.run(arrays, graphs=True)["logits"]
            with engine.place() as place:
                layout = place.layout(dict.fromkeys(names, shape), staged=True)
                steps = timing.step_times(engine, place, layout, 1)
            assert [len(step.layers) for step in steps if not step.plugin] == [1] * 10
            assert np.array_equal(found, engine.run(arrays, graphs=False)["logits"])


def test_the_shapes_that_are_not_given_are_the_usual_ones(made, device):
    assert timing.measure(made[0], {}, 1, 1, 0).shapes["input_ids"] == (1, 128)


def test_one_shape_says_what_the_others_are(made, device):
    """Dimensions of one name have one size: of others TensorRT gives outputs of a negative rank."""
    found = timing.measure(made[0], {"input_ids": (2, 9)}, 1, 1, 0).shapes
    assert found == dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (2, 9))


def test_a_shape_for_no_input_is_refused(made, device):
    with pytest.raises(InputError, match="'nope', which is no input") as caught:
        timing.measure(made[0], {"nope": (1,)}, 1, 1, 0)
    assert "the inputs are input_ids [batch, seq], attention_mask" in caught.value.fix


def test_shapes_that_contradict_are_refused(made, device, monkeypatch):
    def shape_of(context, name):
        sizes = {shape[1] for shape in context.shapes.values() if len(shape) == 2}
        if len(sizes) > 1:
            raise ValueError("__len__() should return >= 0")  # as TensorRT for RTX 1.4 does
        return genuine(context, name)

    genuine = host.Context.get_tensor_shape
    monkeypatch.setattr(host.Context, "get_tensor_shape", shape_of)
    with Engine.load(made[0]) as engine:
        arrays = timing.inputs_of(engine, {"input_ids": (1, 5)}, 0)
        arrays["input_ids"] = arrays["input_ids"][:, :3]
        with pytest.raises(InputError, match=r"input_ids \[1, 3\].* together") as caught:
            engine.run({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    assert "one size" in caught.value.fix


def test_a_graph_that_computes_something_else_is_no_measurement(made, device):
    launch = device.launch

    def wrong(graph, stream):
        launch(graph, stream)
        for memory in device.live.values():
            if len(memory) > 10_000:
                memory[:] = bytes(len(memory))

    device.launch = wrong
    with pytest.raises(EngineError, match="gives 'logits' other values"):
        timing.measure(made[0], {}, 2, 1, 0)


def test_percentiles_of_single_runs():
    found = timing.summary([float(us) for us in range(1, 102)], 10.0)
    assert (found.median_us, found.p90_us, found.p99_us) == (51, 91, 100)


def test_the_table_compares_with_the_first(made, device):
    first = timing.measure(made[0], {}, 1, 1, 0)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_bench(Bench((first, first)).named(["", "m.onnx, TensorRT alone"])))
    text = console.export_text()
    assert "1.000" in text
    assert "10 engines and 13 plugin launches a run" in text
    assert "plugin AddRmsNorm" in text
    assert "m.onnx, TensorRT alone, eager" in text


def test_memory_that_others_take_meanwhile_is_told(made, device, monkeypatch):
    used, taken = device.used_bytes, iter(range(100))
    monkeypatch.setattr(device, "used_bytes", lambda: used() + (next(taken) << 24))
    found = timing.measure(made[0], {}, 1, 1, 0)
    assert found.others_bytes == 1 << 24
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_bench(Bench((found,))))
    assert "other processes use this GPU" in console.export_text()


def subject(tmp_path):
    model = onnx.load(LLAMA)
    return Handover(tmp_path).subject(model, tmp_path)


def test_an_engine_equals_its_model(made, device, tmp_path):
    result = comparing.compare_engine(made[0], subject(tmp_path), 0, None, {})
    assert result.passed
    assert result.tolerance == 2e-2  # TF32
    assert list(result.outputs) == ["logits"]
    assert result.max_rel_err < 1e-4


def test_a_tolerance_that_is_given_counts(made, device, tmp_path):
    result = comparing.compare_engine(made[0], subject(tmp_path), 0, 1e-9, {})
    assert not result.passed


def test_a_replay_that_differs_fails_the_comparison(made, device, tmp_path):
    run = Engine.run

    def changed(self, inputs, *, graphs=None):
        found = run(self, inputs, graphs=graphs)
        return {name: array + 1 for name, array in found.items()} if graphs else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run", changed)
        result = comparing.compare_engine(made[0], subject(tmp_path), 0, None, {})
    assert not result.passed
    assert "its CUDA graph gives 'logits' other values" in result.refused


def test_wrong_numbers_of_an_engine_are_found(made, device, tmp_path):
    run = Engine.run

    def changed(self, inputs, *, graphs=None):
        found = run(self, inputs, graphs=graphs)
        return {name: np.roll(array, 1, axis=-1) for name, array in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run", changed)
        assert not comparing.compare_engine(made[0], subject(tmp_path), 0, None, {}).passed


def test_two_engines_are_not_compared(monkeypatch, made):

    monkeypatch.setattr(gpu, "absent", lambda: "")
    with pytest.raises(InputError, match="are both engines"):
        verify(made[0], made[0], Config(made[0]))


def test_without_a_gpu_both_commands_say_so(made):

    if not gpu.absent():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingComponent, match="is an engine and runs on a GPU"):
        verify(made[0], LLAMA, Config(made[0]))
    with pytest.raises(MissingComponent, match="runs engines on a GPU"):
        bench([made[0]], Config(made[0]), Progress())


def test_the_plot_shows_where_the_time_goes(made, device, tmp_path):
    found = timing.measure(made[0], {}, 3, 2, 0)
    assert [step.layers for step in found.steps if not step.plugin] == [(("a MatMul", 2.0),)] * 10
    parts = parts_of(found)
    assert set(parts) == {PRODUCTS, *(step.op for step in plugin_steps(made[0]))}
    assert sum(parts.values()) == pytest.approx(found.graph.median_us)
    write_plot(Bench((found, found)), tmp_path / "x.svg")
    drawing = ElementTree.parse(tmp_path / "x.svg").getroot()
    bars = [item for item in drawing if item.tag.endswith("rect") and len(item)]
    assert len(bars) == 2 * len(parts)
    assert max(float(b.get("x")) + float(b.get("width")) for b in bars) == pytest.approx(880, abs=1)


def plugin_steps(path):
    return list(Bundle.open(path).schedule.plugins())
