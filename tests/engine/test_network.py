"""What the builder does around TensorRT: the timing cache, reading back, errors, events."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from opfuse import child
from opfuse.engine import gpu, network
from opfuse.engine.backend import Request, ShapesRefused
from opfuse.engine.layers import Layer
from opfuse.engine.network import Journal, Monitor
from opfuse.engine.profile import Range
from opfuse.engine.tensorrt_rtx import TensorRtRtx
from tests.engine_models import chain

ERROR, WARNING, VERBOSE = (SimpleNamespace(name=name) for name in ("ERROR", "WARNING", "VERBOSE"))
LISTING = (
    "Layers:\nName: a, LayerType: gemm, Inputs: [], Outputs: [ { Datatype: Half }], Metadata: \n"
)
LAYER = Layer("a", "gemm", ("fp16",), ())


def journal(*entries):
    made = Journal(verbose=False)
    for severity, message in entries:
        made.log(severity, message)
    return made


class FakeRuntime:
    """Loads any engine but ``b"foreign"``."""

    def __init__(self, logger):
        self.libraries = logger

    def get_plugin_registry(self):
        return SimpleNamespace(load_library=self.libraries.append)

    def deserialize_cuda_engine(self, plan):
        text = json.dumps(
            {"Layers": [{"Name": "a", "LayerType": "gemm", "Outputs": [{"Datatype": "Half"}]}]}
        )
        inspector = SimpleNamespace(get_engine_information=lambda _: text)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return None if plan == b"foreign" else engine


API = SimpleNamespace(Runtime=FakeRuntime, LayerInformationFormat=SimpleNamespace(JSON=1))


def read_back(monkeypatch, plan=b"", absent="", name="tensorrt", **options):
    monkeypatch.setattr(gpu, "absent", lambda: absent)
    request = Request(Path("m.onnx"), Path("m.engine"), {}, **options)
    libraries, notes = [], []
    log = journal((VERBOSE, LISTING), (ERROR, "compute capability 9.0"))
    result = network._read_back(API, name, libraries, log, plan, request, notes)
    return result, libraries, notes


def test_with_a_gpu_the_inspector_is_asked(monkeypatch):
    assert read_back(monkeypatch) == (("inspector", [LAYER]), [], [])


def test_without_a_gpu_the_builder_told_it(monkeypatch):
    assert read_back(monkeypatch, absent="none") == (("builder", [LAYER]), [], [])


def test_a_gpu_that_cannot_load_the_engine_is_noted(monkeypatch):
    result, _, notes = read_back(monkeypatch, b"foreign")
    assert result == ("builder", [LAYER])
    assert notes == ["this GPU cannot load the engine\n  | compute capability 9.0"]
    _, _, (note,) = read_back(monkeypatch, b"foreign", name="tensorrt-rtx")
    assert "pip install 'opfuse[tensorrt]'\n  | compute" in note


@pytest.mark.parametrize(("embedded", "loaded"), [(True, []), (False, ["p.so"])])
def test_only_a_library_that_is_not_embedded_is_loaded_to_read_back(monkeypatch, embedded, loaded):
    library = Path("p.so")
    _, libraries, _ = read_back(monkeypatch, plugin_library=library, embed_plugins=embedded)
    assert libraries == loaded


def test_the_journal_keeps_errors_and_the_listing():
    log = journal((WARNING, "w"), (ERROR, "e1"), (VERBOSE, "noise"), (VERBOSE, LISTING))
    assert (log.warnings, log.errors, log.listing) == (["w"], ["e1"], LISTING)
    assert log.last_errors() == "\n  | e1"


def test_shapes_that_do_not_fit_are_an_error_of_their_own():
    log = journal((ERROR, "kOPT values for profile 0 violate shape constraints: 128 != 64"))
    assert isinstance(network._build_error("trt", log, {}), ShapesRefused)


def test_a_failure_with_plugins_says_how_to_go_without():
    error = network._build_error("trt", journal((ERROR, "no tactic")), {"/norm": "RmsNorm"})
    assert not isinstance(error, ShapesRefused)
    assert "no tactic" in error.what
    assert "--lower leave" in error.fix


def test_progress_events_start_every_phase_and_are_not_a_flood(monkeypatch):
    events = []
    monkeypatch.setattr(child, "emit", events.append)
    monitor = Monitor()
    monitor.phase_start("Building", None, 1000)
    assert all(monitor.step_complete("Building", step) for step in range(1000))
    monitor.phase_start("Inner", "Building", 2)
    monitor.phase_finish("Inner")
    assert events[0] == {"text": "Building", "done": 0, "total": 1000}
    assert events[-1] == {"text": "Inner", "done": 0, "total": 2}
    assert len(events) < 100


@pytest.fixture
def build_with_cache(tmp_path):
    """TensorRT for RTX honours the interface of the timing cache, without any use for it."""
    pytest.importorskip("tensorrt_rtx")
    onnx.save(chain(2), tmp_path / "m.onnx")
    cache = tmp_path / "timing.cache"
    ranges = {"t0": Range((1, 16), (1, 16), (8, 16))}
    request = Request(tmp_path / "m.onnx", tmp_path / "m.engine", ranges, timing_cache=cache)
    environment = TensorRtRtx().environment(tmp_path)

    def build():
        return child.run(TensorRtRtx.build, [request], env=environment)

    return cache, build


def test_the_timing_cache_is_written(build_with_cache):
    cache, build = build_with_cache
    assert build().notes == ()
    assert cache.read_bytes()


def test_a_timing_cache_that_is_none_is_replaced(build_with_cache):
    cache, build = build_with_cache
    cache.write_bytes(b"no cache at all")
    assert "replaced" in build().notes[0]
    assert cache.read_bytes() != b"no cache at all"


class FakeConfig:
    """Takes the caches ``b"good"`` and the empty one; serialises what it took."""

    def create_timing_cache(self, data):
        return SimpleNamespace(serialize=lambda: data + b"+")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return cache.serialize() in (b"good+", b"+")

    def get_timing_cache(self):
        return self.cache


@pytest.mark.parametrize(
    ("before", "after", "notes"), [(b"good", b"good+", 0), (b"other", b"+", 1), (b"", b"+", 0)]
)
def test_the_timing_cache_is_read_where_it_fits(tmp_path, before, after, notes):
    path = tmp_path / "timing.cache"
    path.write_bytes(before)
    cache = network._TimingCache(FakeConfig(), path, journal())
    assert len(cache.save()) == notes
    assert path.read_bytes() == after
