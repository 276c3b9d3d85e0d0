"""--tune: each distinct region once, verdicts that survive a kill, and builds that reuse them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Lock

import onnx
import pytest

import opfuse
from models import tiny
from opfuse.config import Config
from opfuse.engine import trials, verdicts
from opfuse.engine.backend import EngineInfo
from opfuse.engine.gpu import Gpu
from opfuse.engine.verdicts import LEAVE, NATIVE
from opfuse.errors import EngineError, InputError
from opfuse.progress import Progress
from opfuse.runtime import tuning
from opfuse.runtime.bundle import Bundle
from opfuse.stages import tune
from tests.engine_models import plugins
from tests.runtime import host

LIBRARY = plugins()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the plugin library is not built")
H100 = Gpu("a test", "9.0")
OPS = frozenset({"RmsNorm", "AddRmsNorm", "GatedAct", "Rope", "FlashAttention"})


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int]] = []

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        self.steps.append((text, done, total))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(tune.gpu, "current", lambda: H100)


@pytest.fixture
def timed(monkeypatch):
    """Regions are built by nobody; the op names that win are put into ``wins``."""
    calls: list[tuple[str, ...]] = []
    wins: set[str] = set()

    def run(self, todo, settle):
        for key, region in todo.items():
            names = [name for name, _ in trials.variants(self._ops(region))]
            calls.append(tuple(names))
            fast = {name: 10.0 if set(name.split("+")) <= wins else 30.0 for name in names}
            settle(key, {"opt": {n: [20.0 if n == LEAVE else fast[n]] * 5 for n in names}}, "")

    monkeypatch.setattr(tune.Trials, "run", run)
    return calls, wins


def lowered(folder: Path, layers: int):
    folder.mkdir()
    path = tiny.llama(layers=layers).write(folder / "llama.onnx")
    return host.lowered(path, folder, OPS)


def decided(folder: Path, layers: int = 2, progress: Progress | None = None, **options):
    config = Config(folder / "m.onnx", backend="segmented", lock=folder.parent / "l", **options)
    model = lowered(folder, layers)
    return model, tune.decide(model, folder, LIBRARY, config, progress or Progress())


def test_what_wins_stays_a_plugin_and_the_rest_is_left(tmp_path, gpu, timed):
    calls, wins = timed
    wins.add("GatedAct")
    model, found = decided(tmp_path / "a", tune=True)
    choices = {
        (name.rpartition("/")[0] or name, choice) for name, (choice, _) in found.nodes.items()
    }
    assert {choice for _, choice in choices} == {"plugin", "leave"}
    kinds = [node.op_type for node in model.graph.node if node.domain == "opfuse"]
    assert kinds.count("GatedAct") == 2
    assert {"AddRmsNorm_body", "FlashAttention_body"} <= set(kinds)
    assert any(variant == (LEAVE, NATIVE, "GatedAct") for variant in calls)
    reasons = {reason for choice, reason in found.nodes.values() if choice == "plugin"}
    assert all(reason.startswith("measured here: opt: ") for reason in reasons)


def test_layers_of_tensorrt_are_a_choice_where_there_are_some(tmp_path, gpu, monkeypatch):
    """The model is of opset 23; GatedAct has no form of its own."""
    tried = {}

    def child(self, function, arguments, on_event=None):
        if function.endswith("batch:build"):
            return [[] for _ in arguments[1]]
        for name, (paths, _) in arguments[0].items():
            tried[name] = set(paths)
            times = {v: [1.0 if v == NATIVE else 2.0] * 3 for v in paths}
            on_event({"case": name, "times": {"opt": times}})
        return None

    monkeypatch.setattr(tune.Trials, "child", child)
    monkeypatch.setattr(trials, "_finish", lambda item, built: None)
    path = tiny.llama(layers=1).write(tmp_path / "llama.onnx")
    model = onnx.load(path)
    (tmp_path / "a").mkdir()
    onnx.save(onnx.version_converter.convert_version(model, 23), path)
    model = host.lowered(path, tmp_path / "a", OPS)
    config = Config(path, backend="segmented", lock=tmp_path / "l", tune=True)
    found = tune.decide(model, tmp_path / "a", LIBRARY, config, Progress())
    assert any(NATIVE not in names for names in tried.values())
    assert {NATIVE, LEAVE} <= {choice for choice, _ in found.nodes.values()}
    ops = [node.op_type for node in model.graph.node]
    assert "RMSNormalization" in ops
    assert "GatedAct_body" in ops
    again = host.lowered(path, tmp_path / "a", OPS)
    kept = tune.decide(again, tmp_path / "a", LIBRARY, replace(config, tune=False), Progress())
    choices = [{n: c for n, (c, _) in item.nodes.items()} for item in (found, kept)]
    assert choices[0] == choices[1]


def test_more_layers_cost_nothing(tmp_path, gpu, timed):
    calls, _ = timed
    decided(tmp_path / "a", 2, tune=True)
    two = len(calls)
    (tmp_path / "l").unlink()
    decided(tmp_path / "b", 6, tune=True)
    assert len(calls) - two == two


def test_a_second_build_measures_nothing_and_chooses_the_same(tmp_path, gpu, timed):
    calls, wins = timed
    wins.add("AddRmsNorm")
    _, first = decided(tmp_path / "a", tune=True)
    count, text = len(calls), (tmp_path / "l").read_text()
    _, second = decided(tmp_path / "b", tune=True)
    _, third = decided(tmp_path / "c")
    assert len(calls) == count
    assert (tmp_path / "l").read_text() == text
    for later in (second, third):
        assert {n: c for n, (c, _) in later.nodes.items()} == {
            n: c for n, (c, _) in first.nodes.items()
        }
    assert "from the lock" in third.note


@pytest.mark.parametrize("short", [False, True])
def test_speed_is_spent_on_memory_only_where_it_is_short(tmp_path, gpu, monkeypatch, short):
    """Every plugin is 2 % slower than TensorRT's layers, which would take an engine each."""
    asked = []

    def run(self, todo, settle):
        for key, region in todo.items():
            names = [name for name, _ in trials.variants(self._ops(region))]
            settle(key, {"opt": {n: [50.0 if n == LEAVE else 51.0] * 5 for n in names}}, "")

    def exceeds(model, base_dir, library, profile, *, around_attention):
        asked.append(([node.op_type for node in model.graph.node], around_attention))
        return short

    monkeypatch.setattr(tune.Trials, "run", run)
    monkeypatch.setattr(tune._Tuner, "_is_apart", lambda self, region: True)
    monkeypatch.setattr(tune, "exceeds", exceeds)
    model, found = decided(tmp_path / "a", tune=True)
    again, kept = decided(tmp_path / "b")
    for part, told in ((model, found), (again, kept)):
        ops = {node.op_type for node in part.graph.node if node.domain == "opfuse"}
        assert ("AddRmsNorm" in ops) is short
        reasons = {reason.endswith("than TensorRT alone") for _, reason in told.nodes.values()}
        assert reasons == {short}
    assert len(asked) == 2
    assert all("AddRmsNorm_body" in ops and not around for ops, around in asked)


def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path, gpu, timed, monkeypatch):
    calls, _ = timed
    genuine = verdicts.decide

    def killed(*arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return genuine(*arguments, **options)

    monkeypatch.setattr(verdicts, "decide", killed)
    with pytest.raises(KeyboardInterrupt):
        decided(tmp_path / "a", tune=True)
    section = json.loads((tmp_path / "l").read_text())["verdicts"]
    assert [len(found) for found in section.values()] == [2]
    monkeypatch.setattr(verdicts, "decide", genuine)
    told = Told()
    began = len(calls)
    decided(tmp_path / "b", tune=True, progress=told)
    rest = len(calls) - began
    (tmp_path / "l").unlink()
    decided(tmp_path / "c", tune=True)
    assert len(calls) - began - rest == rest + 2
    done = [(at, total) for _, at, total in told.steps if total]
    assert done == [(index, rest) for index in range(rest + 1)]
    assert "0 s left" in told.steps[-1][0]


def test_another_library_is_measured_again(tmp_path, gpu, timed, monkeypatch):
    calls, _ = timed
    decided(tmp_path / "a", tune=True)
    count = len(calls)
    monkeypatch.setattr(tune, "file_hash", lambda path: "another library")
    decided(tmp_path / "b", tune=True)
    assert len(calls) == 2 * count


def test_other_sections_of_the_lock_stay(tmp_path, gpu, timed):
    (tmp_path / "l").write_text('{"format": 1, "fusions": {"a": 1}}')
    decided(tmp_path / "a", tune=True)
    lock = json.loads((tmp_path / "l").read_text())
    assert lock["fusions"] == {"a": 1}
    assert lock["verdicts"]


def test_verdicts_that_are_no_object_are_replaced(tmp_path, gpu, timed):
    (tmp_path / "l").write_text('{"format": 1, "verdicts": [1]}')
    decided(tmp_path / "a", tune=True)
    assert isinstance(json.loads((tmp_path / "l").read_text())["verdicts"], dict)


def test_a_broken_lock_is_refused(tmp_path):
    (tmp_path / "l").write_text("<<<<<<< \n")
    with pytest.raises(InputError, match="is no lock"):
        decided(tmp_path / "a")


def test_without_a_gpu_and_a_lock_the_table_decides_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tune.gpu, "current", lambda: None)
    points = [[[1000, 1000, 10], 0.5]]  # the model is in fp32
    ops = {"GatedAct fp32": points, "AddRmsNorm": points}
    table = {"gpu": "a GPU", "date": "a day", "ops": ops}
    monkeypatch.setattr(tune.estimate, "table", lambda capability: table)
    model, found = decided(tmp_path / "a", tune=True)
    assert not (tmp_path / "l").exists()
    assert found.note.startswith("--tune measured nothing, for there is no GPU: ")
    assert "no GPU here, H100" in found.note
    assert found.note.count("the table of a GPU of a day (no row for ") == 1
    assert "AddRmsNorm fp32, FlashAttention fp32, " in found.note
    assert found.note.endswith("--precision fp16 or bf16 lets plugins pay")
    kinds = [node.op_type for node in model.graph.node if node.domain == "opfuse"]
    assert "GatedAct" in kinds
    assert "AddRmsNorm_body" in kinds


def test_a_variant_that_cannot_be_built_loses(tmp_path, gpu, monkeypatch):
    def child(self, function, arguments, on_event=None):
        if function.endswith("batch:build"):
            return ["it is refused"] * len(arguments[1])
        raise AssertionError(function)

    monkeypatch.setattr(tune.Trials, "child", child)
    told = Told()
    _, found = decided(tmp_path / "a", tune=True, progress=told)
    assert {choice for choice, _ in found.nodes.values()} == {"leave"}
    assert any("it is refused" in text for text, _, _ in told.steps)
    assert all("could not be measured (" in reason for _, reason in found.nodes.values())
    assert "it is refused" in found.note
    assert not (tmp_path / "l").exists()  # the next build tries again


def test_a_variant_that_kills_its_process_takes_no_other_along(tmp_path, gpu, monkeypatch):
    """Neither where it is built, nor where it is timed."""
    built = []

    def child(self, function, arguments, on_event=None):
        if function.endswith("batch:build"):
            built.append(len(arguments[1]))
            if len(arguments[1]) > 1:
                raise EngineError("killed by SIGSEGV")
            return [[]]
        for name, (paths, _) in arguments[0].items():
            on_event({"at": name})
            if "AddRmsNorm" in paths:
                raise EngineError("killed by SIGFPE")
            times = {"opt": {v: [1.0 if "+" in v or v in OPS else 2.0] * 3 for v in paths}}
            on_event({"case": name, "times": times})
        return None

    monkeypatch.setattr(tune.Trials, "child", child)
    monkeypatch.setattr(trials.assemble, "pack", lambda *_, **__: None)
    monkeypatch.setattr(trials.Path, "unlink", lambda *_, **__: None)
    _, found = decided(tmp_path / "a", tune=True)
    assert sorted(set(built))[0] == 1
    assert max(built) > 1
    choices = {(name.rpartition("/")[2], choice) for name, (choice, _) in found.nodes.items()}
    assert {choice for op, choice in choices if op == "AddRmsNorm"} == {"leave"}
    assert {choice for op, choice in choices if op != "AddRmsNorm"} == {"plugin"}
    reasons = {reason for choice, reason in found.nodes.values() if choice == "leave"}
    assert reasons == {"could not be measured (killed by SIGFPE): leave"}
    (section,) = json.loads((tmp_path / "l").read_text())["verdicts"].values()
    assert all("AddRmsNorm" not in verdict["ops"] for verdict in section.values())


@pytest.mark.parametrize("survivor", [None, LEAVE])
def test_engines_that_do_not_load_give_no_verdict(tmp_path, gpu, monkeypatch, survivor):
    """Such as where others have taken the GPU's memory: the lock would keep it for ever."""

    def child(self, function, arguments, on_event=None):
        if function.endswith("batch:build"):
            return [[] for _ in arguments[1]]
        for name, (paths, _) in arguments[0].items():
            on_event({"at": name})
            on_event({"text": "AddRmsNorm: CUDA: cudaMalloc gives cudaErrorMemoryAllocation"})
            times = {v: [1.0] * 3 for v in paths if v == survivor}
            on_event({"case": name, "times": {"opt": times}})
        return None

    monkeypatch.setattr(tune.Trials, "child", child)
    monkeypatch.setattr(trials, "_finish", lambda item, built: None)
    _, found = decided(tmp_path / "a", tune=True)
    assert {choice for choice, _ in found.nodes.values()} == {"leave"}
    assert all("cudaErrorMemoryAllocation" in reason for _, reason in found.nodes.values())
    assert not (tmp_path / "l").exists()


def test_every_variant_runs(tmp_path, gpu, monkeypatch):
    """All but TensorRT and the GPU: each variant is cut, packed, loaded, and timed."""
    device, model, lock = host.HostDevice(), lowered(tmp_path / "m", 1), Lock()
    variants: list[dict[str, int]] = []

    def child(self, function, arguments, on_event=None):
        if function.endswith("batch:build"):
            return [list(map(built, requests)) for requests in arguments[1]]
        for paths, _ in arguments[0].values():
            opened = {variant: Bundle.open(path).schedule for variant, path in paths.items()}
            variants.append({v: len(list(found.plugins())) for v, found in opened.items()})
        with lock:
            monkeypatch.setattr(tuning.child, "emit", on_event)
            tuning.weigh(*arguments)

    def built(request):
        request.engine.write_bytes(request.model.read_bytes())
        return EngineInfo("tensorrt-rtx", host.VERSION, "", str(request.engine), 0, "", *REST)

    def load(path):
        return host.open_engine(monkeypatch, path, model, device)

    monkeypatch.setattr(tuning, "_FLUSH", 64)
    monkeypatch.setattr(tune.Trials, "child", child)
    monkeypatch.setattr(tuning.Engine, "load", staticmethod(load))
    config = Config(tmp_path, backend="segmented", lock=tmp_path / "l", tune=True)
    found = tune.decide(model, tmp_path / "m", LIBRARY, config, Progress())
    assert {choice for choice, _ in found.nodes.values()} == {"leave"}  # the clock stands still
    assert {LEAVE: 0, "Rope+FlashAttention": 3, "Rope": 2, "FlashAttention": 1} in variants
    assert all(launches[LEAVE] == 0 for launches in variants)
    verdicts = json.loads((tmp_path / "l").read_text())["verdicts"]
    (section,) = verdicts.values()
    timed = [sorted(times) for verdict in section.values() for times in verdict["us"].values()]
    assert {tuple(names) for names in timed} == {tuple(sorted(found)) for found in variants}
    assert device.live == {}


REST = (1, {}, {}, {}, (), "network")


def test_the_report_has_the_reasons(tmp_path, monkeypatch):
    model = tiny.llama(layers=1).write(tmp_path / "llama.onnx")
    monkeypatch.chdir(tmp_path)  # where there is no opfuse.lock
    report = opfuse.build(model, tmp_path / "x.opfuse", backend="segmented", prove=False)
    assert {item.choice for item in report.lowering} <= {"plugin", "leave"}
    assert any("plugins or TensorRT for " in note for note in report.engine.notes)
