"""Running a bundle: the loader, layouts, graphs, threads, and arrays, on a GPU that is none."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from opfuse.engine import gpu
from opfuse.errors import InputError, MissingComponent
from opfuse.numerics import sample
from opfuse.numerics.compare import compare, tolerance
from opfuse.numerics.session import CannotRun, OnnxRuntime
from opfuse.runtime import dlpack, library, loading
from opfuse.runtime.engine import Engine
from tests.engine_models import ROOT, plugins
from tests.runtime import host

pytestmark = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")

MODELS = sorted((ROOT / "models").glob("*.onnx"))
LLAMA = ROOT / "models" / "llama.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle for each model, made once: the file, the lowered model, the draft."""
    known = {}
    ops = frozenset(op.name for op in library.describe(plugins()).ops)

    def make(path: Path):
        if path not in known:
            folder = tmp_path_factory.mktemp(path.stem)
            model = host.lowered(path, folder, ops)
            info, parts = host.bundle(model, folder, plugins(), folder / "model.opfuse")
            known[path] = folder / "model.opfuse", model, info, parts
        return known[path]

    return make


@pytest.fixture
def opened(made, monkeypatch):
    def open_model(path=LLAMA, device=None, **options) -> Engine:
        file, model, *_ = made(path)
        return host.open_engine(monkeypatch, file, model, device, **options)

    return open_model


def feeds(batch=2, seq=7, seed=0):
    rng = np.random.default_rng(seed)
    shape = (batch, seq)
    return {
        "input_ids": rng.integers(0, 200, shape),
        "attention_mask": np.ones(shape, np.int64),
        "position_ids": np.broadcast_to(np.arange(seq), shape),
    }


@pytest.fixture(scope="module")
def expected():
    reference = OnnxRuntime(onnx.load(LLAMA))
    return lambda given: reference.run(given)[0]


def close(found, want):
    return compare(want, np.asarray(found)).within(tolerance([onnx.TensorProto.FLOAT]))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("graphs", [True, False])
def test_a_bundle_computes_what_the_model_does(opened, made, path, graphs):
    """Every segment spoils its scratch, and fresh memory is NaN: a wrong plan would show."""
    *_, parts = made(path)
    assert len(parts.models) > 1
    model = onnx.load(path)
    reference, items = OnnxRuntime(model), sample.inputs(model.graph)
    allowed = tolerance(item.data_type for item in model.graph.initializer)
    compared = 0
    with opened(path, graphs=graphs) as engine:
        for sizes in sample.assignments(items):
            given = sample.draw(items, sizes, 0)
            try:
                want = reference.run(given)
            except CannotRun:
                continue
            for _ in range(2):
                got = engine.run(given)
                for info, values in zip(model.graph.output, want, strict=True):
                    assert compare(values, got[info.name]).within(allowed), info.name
            compared += 1
    assert compared > 1


def test_memory_is_given_back(opened):
    device = host.HostDevice()
    with opened(device=device, contexts=2) as engine:
        engine.run(feeds())
        assert engine.memory()["arena"] > 0
        assert device.graphs
    assert device.live == {}
    assert device.graphs == {}


def test_graphs_are_kept_for_the_shapes_used_last(opened, expected):
    device = host.HostDevice()
    engine = opened(device=device, max_graphs=2)
    captured = []
    capture = device.capture
    device.capture = lambda *a: captured.append(1) or capture(*a)
    with engine:
        engine.run(feeds(4, 30))  # the largest first: nothing grows any more
        for seq in (8, 8, 9, 8, 10, 8):
            assert close(engine.run(feeds(1, seq))["logits"], expected(feeds(1, seq)))
        assert len(device.graphs) == 2
    assert len(captured) == 4  # 30, 8, 9, 10; 8 was never the oldest


def test_a_larger_shape_moves_the_memory_and_drops_the_graphs(opened, expected):
    device = host.HostDevice()
    with opened(device=device) as engine:
        for seq in (4, 40, 4, 80, 4):
            assert close(engine.run(feeds(1, seq))["logits"], expected(feeds(1, seq)))
        held = engine.memory()["arena"]
        engine.run(feeds(1, 80))
        assert engine.memory()["arena"] == held


def test_a_graph_and_single_steps_give_the_same_bits(opened):
    with opened() as engine:
        eager = engine.run(feeds(), graphs=False)["logits"]
        for _ in range(2):
            assert engine.run(feeds(), graphs=True)["logits"].tobytes() == eager.tobytes()


def test_many_threads_share_a_few_contexts(opened, expected):
    cases = [(given, expected(given)) for given in (feeds(b, s) for b in (1, 2) for s in (3, 9))]
    wrong = []
    with opened(contexts=3, max_graphs=2, graphs=False) as engine:

        def work(seed):
            order = random.Random(seed)
            for _ in range(12):
                given, want = order.choice(cases)
                if not close(engine.run(given)["logits"], want):
                    wrong.append(given)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(engine._places) == 3
    assert wrong == []


def on_device(device, array):
    """An array whose memory counts as the GPU's."""
    address = device.allocate(array.nbytes)
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    host.at(address, element, array.shape)[...] = array
    return dlpack.Array(address, element, array.shape, device.free, device.dlpack)


@pytest.mark.parametrize("graphs", [True, False])
def test_arrays_on_the_gpu_come_back_as_such(opened, expected, graphs):
    device = host.HostDevice()
    device.dlpack = (dlpack.CUDA, 0)
    copies = []
    copy = device.copy
    device.copy = lambda *a: copies.append(a[2]) or copy(*a)
    with opened(device=device, graphs=graphs) as engine:
        given = feeds()
        copies.clear()
        result = engine.run({name: on_device(device, array) for name, array in given.items()})
        found = result["logits"]
        assert isinstance(found, dlpack.Array)
        assert close(host.at(found.address, found.element, found.shape), expected(given))
        assert bool(copies) == graphs  # without graphs nothing is copied
        before = len(device.live)
        del found, result
        assert len(device.live) < before


def test_an_input_on_the_host_and_one_on_the_gpu(opened, expected):
    device = host.HostDevice()
    device.dlpack = (dlpack.CUDA, 0)
    with opened(device=device) as engine:
        given = feeds()
        mixed = {**given, "input_ids": on_device(device, given["input_ids"])}
        found = engine.run(mixed)["logits"]
        assert close(host.at(found.address, found.element, found.shape), expected(given))


class Strided:
    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("position_ids"), "differ in position_ids"),
        (lambda f: f.update(other=np.zeros(1)), "differ in other"),
        (lambda f: f.update(input_ids=f["input_ids"].astype(np.int32)), "INT32, .* INT64"),
        (lambda f: f.update(input_ids=f["input_ids"][0]), r"has shape \[7\], .* batchxseq"),
        (lambda f: f.update(input_ids=np.array(["a"])), "STRING, .* INT64"),
        (lambda f: f.update(input_ids=np.zeros(2, "M8[s]")), "has type datetime64"),
        (lambda f: f.update(input_ids=[[1, 2]]), r"'input_ids' \(list\) cannot be read"),
        (lambda f: f.update(input_ids=Strided(f["input_ids"].T)), "is not contiguous"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(opened, change, message):
    given = feeds()
    change(given)
    with opened() as engine:
        with pytest.raises(InputError, match=message):
            engine.run(given)
        engine.run(feeds())  # the context was given back


def test_the_usual_shapes_come_from_the_bundle(opened):
    with opened() as engine:
        assert engine.usual_shapes() == dict.fromkeys(
            ("input_ids", "attention_mask", "position_ids"), (1, 128)
        )


def test_a_bundle_of_another_tensorrt_is_refused(made, monkeypatch):
    device = host.HostDevice()
    monkeypatch.setattr(loading, "import_module", lambda name: host.api(device, "1.7.1.116"))
    with pytest.raises(MissingComponent, match=r"built by tensorrt_rtx 1\.4\.0\.76; 1\.7\.1\.116"):
        loading.load(made(LLAMA)[0], None, lambda: device)


def test_a_bundle_on_a_gpu_without_kernels_is_refused(made, monkeypatch):
    device = host.HostDevice("5.0")
    monkeypatch.setattr(loading, "import_module", lambda name: host.api(device))
    with pytest.raises(MissingComponent, match="the plugin library of"):
        loading.load(made(LLAMA)[0], None, lambda: device)


def test_another_plugin_library_is_refused(made, monkeypatch, tmp_path):
    other = tmp_path / library.FILE_NAME
    other.write_bytes(plugins().read_bytes() + b"\0")
    device = host.HostDevice()
    monkeypatch.setattr(loading, "import_module", lambda name: host.api(device))
    with pytest.raises(MissingComponent, match="another plugin library than"):
        loading.load(made(LLAMA)[0], other, lambda: device)


def test_a_library_that_is_not_embedded_is_found_beside_the_bundle(made, tmp_path, monkeypatch):
    _, model, _, parts = made(LLAMA)
    folder = parts.models[0].parent
    host.bundle(model, folder, plugins(), tmp_path / "x.opfuse", embed=False)
    assert (tmp_path / "x.opfuse").stat().st_size < made(LLAMA)[0].stat().st_size
    beside = tmp_path / library.FILE_NAME
    beside.write_bytes(plugins().read_bytes())
    with host.open_engine(monkeypatch, tmp_path / "x.opfuse", model) as engine:
        engine.run(feeds())
    beside.unlink()  # the file is mapped
    beside.write_bytes(plugins().read_bytes() + b"\0")
    with pytest.raises(MissingComponent, match="another plugin library"):
        loading.load(tmp_path / "x.opfuse", None, host.HostDevice)


def test_the_report_says_what_runs(made):
    _, _, info, parts = made(LLAMA)
    assert info.plugin_layers == {
        "Rope": 4,
        "AddRmsNorm": 4,
        "FlashAttention": 2,
        "GatedAct": 2,
        "RmsNorm": 1,
    }
    assert sum(info.plugin_layers.values()) == len(list(parts.schedule.plugins()))
    # Between the rotations and their attention there are only views, which make no engine.
    assert info.notes[0] == "10 segments and 13 plugin launches"
    assert info.left == {}


def test_without_a_gpu_the_message_says_so(made):
    if not gpu.absent():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingComponent, match="engines run on a GPU: no NVIDIA driver"):
        Engine.load(made(LLAMA)[0])


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match="there is no engine nowhere"):
        Engine.load("nowhere.engine")


def test_an_array_of_ours_is_one_for_numpy():
    device = host.HostDevice()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = on_device(device, values)
    shared = np.from_dlpack(array)
    np.testing.assert_array_equal(shared, values)
    del array
    assert len(device.live) == 1  # NumPy still has it
    del shared
    assert device.live == {}


def test_a_capsule_that_nobody_takes_is_freed():
    device = host.HostDevice()
    array = on_device(device, np.ones(3, np.float16))
    capsule = array.__dlpack__()
    del array
    assert len(device.live) == 1
    del capsule
    assert device.live == {}


def test_bfloat16_is_passed_on():
    device = host.HostDevice()
    array = on_device(device, np.ones((2, 2), ml_dtypes.bfloat16))
    found = dlpack.view(array, "x", 0)
    assert (found.element, found.shape) == (onnx.TensorProto.BFLOAT16, (2, 2))
    assert found.bytes == 8
