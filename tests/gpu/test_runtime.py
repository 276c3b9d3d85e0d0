"""Bundles on a GPU, with whichever TensorRT is installed, against onnxruntime on the CPU."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import opfuse
from opfuse.engine import gpu, outline
from opfuse.numerics import sample
from opfuse.numerics.compare import compare
from opfuse.numerics.session import OnnxRuntime
from opfuse.runtime import Engine, timing
from opfuse.runtime.bundle import MANIFEST, Bundle, write
from opfuse.runtime.library import find
from opfuse.runtime.schedule import EngineStep

MODEL = Path(__file__).parents[2] / "models" / "llama_fp16.onnx"
TOLERANCE = 2e-2
MEGABYTE = 1 << 20

Case = tuple[dict[str, Any], np.ndarray]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if gpu.absent():
        pytest.skip(f"not run: {gpu.absent()}")
    pytest.importorskip("cuda.bindings")
    path = tmp_path_factory.mktemp("bundle") / "llama.opfuse"
    try:
        opfuse.build(MODEL, path, backend="segmented", lower="plugin", prove=False)
    except opfuse.MissingComponent as error:
        pytest.skip(f"not run: {error.what}")
    return path


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Inputs in many shapes with what the model gives for them."""
    model = onnx.load(MODEL)
    items, reference, rng = sample.inputs(model.graph), OnnxRuntime(model), random.Random(0)
    found = []
    for seed in range(100):
        sizes = {"batch": rng.randint(1, 4), "seq": rng.randint(1, 96)}
        drawn = sample.draw(items, sizes, seed)
        given = {name: np.ascontiguousarray(array) for name, array in drawn.items()}
        found.append((given, reference.run(given)[0]))
    return found


@pytest.fixture
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.load(bundle, contexts=4, max_graphs=6) as engine:
        yield engine


def error(found: Any, want: np.ndarray) -> float:
    return compare(want, np.asarray(found)).max_rel


def least_growth(engine: Engine, work: Callable[[], None]) -> int:
    """Bytes that the device has lost after ``work``, at its best of a few times.

    The device is not ours alone: others take memory meanwhile, but what leaks does so every time.
    """
    found = []
    while len(found) < 4 and min(found, default=MEGABYTE) >= MEGABYTE:
        before = engine.device.used_bytes()
        work()
        found.append(engine.device.used_bytes() - before)
    return min(found)


def test_verify_passes(bundle: Path) -> None:
    assert opfuse.verify(MODEL, bundle).passed


def test_a_graph_gives_the_bits_of_single_steps(engine: Engine, cases: list[Case]) -> None:
    for given, want in cases[:5]:
        eager = engine.run(given, graphs=False)["logits"]
        for _ in range(3):
            assert engine.run(given)["logits"].tobytes() == eager.tobytes()
        assert error(eager, want) < TOLERANCE


def test_a_thousand_runs_from_eight_threads(engine: Engine, cases: list[Case]) -> None:
    """All shapes are met in the first round; then there is one in which no memory is added."""
    worst, used, failures = [0.0], [], []
    lock = threading.Lock()

    def work(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(125):
            given, want = order.choice(cases)
            try:
                off = error(engine.run(given)["logits"], want)
            except Exception as problem:
                failures.append(problem)
                return
            with lock:
                worst[0] = max(worst[0], off)
                used.append(engine.device.used_bytes())

    def all_runs() -> None:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    all_runs()
    grown = least_growth(engine, all_runs)
    print(f"worst {worst[0]:.1e}, device MB {[u // MEGABYTE for u in used[:: len(used) // 8]]}")
    assert worst[0] < TOLERANCE
    assert grown < 16 * MEGABYTE


@pytest.mark.parametrize("graphs", [True, False])
def test_torch_tensors(bundle: Path, cases: list[Case], graphs: bool) -> None:
    torch = pytest.importorskip("torch")
    with Engine.load(bundle, graphs=graphs) as engine:
        given, want = cases[0]
        tensors = {name: torch.from_numpy(array).cuda() for name, array in given.items()}
        found = engine.run(tensors)["logits"]
        assert isinstance(found, torch.Tensor)
        assert found.is_cuda
        assert error(found.cpu().numpy(), want) < TOLERANCE

        def runs() -> None:
            for _ in range(200):
                engine.run(tensors)

        assert least_growth(engine, runs) < MEGABYTE


def test_graphs_are_captured_after_layers_were_timed(tmp_path: Path, bundle: Path) -> None:
    """Where the timed contexts are captured, TensorRT for RTX 1.4 ends the process in a few rounds.

    One of the model's engines runs several times; ``bundle`` is there for its skips.
    """
    path = tmp_path / "gpt2.opfuse"
    model = MODEL.with_name("gpt2_fp16.onnx")
    opfuse.build(model, path, backend="segmented", lower="plugin", prove=False)
    with Engine.load(path) as engine:
        runs = [step for step in engine.schedule.steps if isinstance(step, EngineStep)]
        assert len({step.engine for step in runs}) < len(runs)
        for tokens in range(16, 160, 16):
            shapes = {value.name: (2, tokens) for value in engine.inputs}
            given = timing.inputs_of(engine, shapes, tokens)
            eager = engine.run(given, graphs=False)
            with engine.place() as place:
                steps = timing.step_times(engine, place, place.layout(shapes, staged=True), 2)
            assert all(step.plugin or step.layers for step in steps)
            found = engine.run(given, graphs=True)
            assert all(found[name].tobytes() == eager[name].tobytes() for name in eager)


def test_bench_measures(bundle: Path) -> None:
    (measured,) = opfuse.bench(bundle, iterations=10, warm_up=3).engines
    assert 0 < measured.graph.median_us <= measured.graph.p90_us <= measured.graph.p99_us
    assert measured.arena_bytes > 0  # peak_bytes counts what others give back meanwhile
    assert sum(step.plugin for step in measured.steps) == measured.plugins > 0


def test_bench_beside_a_torch_module(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "class Twice(torch.nn.Module):\n"
        "    def forward(self, ids, mask, positions):\n"
        "        return {'y': (ids.half() * 2.0, mask + positions)}\n"
    )
    module = Path(f"{tmp_path}/model.py:Twice")
    ours, theirs = opfuse.bench(bundle, module, iterations=10, warm_up=3).engines
    assert (theirs.path, theirs.shapes, theirs.steps) == (str(module), ours.shapes, ())
    assert 0 < theirs.graph.median_us <= theirs.graph.p90_us
    assert 0 < theirs.graph.median_us < theirs.eager.median_us * 2
    assert theirs.largest >= 1
    with pytest.raises(opfuse.InputError, match="NoSuch"):
        opfuse.bench(bundle, f"{tmp_path}/model.py:NoSuch", iterations=2)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_refused(bundle: Path, tmp_path: Path, place: float) -> None:
    data = bytearray(bundle.read_bytes())
    data[int(len(data) * place)] ^= 1
    broken = tmp_path / "broken.opfuse"
    broken.write_bytes(data)
    with pytest.raises(opfuse.InputError, match="damaged"):
        Engine.load(broken)


def test_another_plugin_library_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "libopfuse_plugins.so"
    other.write_bytes(find().read_bytes() + b"another")
    with pytest.raises(opfuse.MissingComponent, match="SHA-256"):
        Engine.load(bundle, plugins=other)


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        ({"tensorrt": "1.4.0.1"}, "was built by .* 1.4.0.1; .* is installed", "pip install .*=="),
        (
            {"gpu": {"name": "another GPU", "compute_capability": "12.0"}},
            "was built for another GPU",
            "build it again here",
        ),
        (
            {"architectures": ["80-real"]},
            "the plugin library of .* has kernels for 80-real",
            "build the plugin library for this GPU",
        ),
    ],
)
def test_another_machine_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str, fix: str
) -> None:
    """As a bundle would say that was built with another TensorRT, or for another GPU."""
    opened, other = Bundle.open(bundle), tmp_path / "other.opfuse"
    members = {name: opened.read(name) for name in opened.names() if name != MANIFEST}
    write(other, {**opened.manifest, "lock": {**opened.lock.as_dict(), **changes}}, members)
    with pytest.raises(opfuse.MissingComponent, match=message) as refused:
        Engine.load(other)
    assert re.search(fix, refused.value.fix)


def test_every_step_is_right(bundle: Path) -> None:
    comparison = opfuse.verify(MODEL, bundle, layers=True)
    assert len(comparison.layers) > 10
    assert comparison.first_apart is None


def test_the_first_operator_that_differs_is_found(bundle: Path) -> None:
    """With a tolerance that rounding breaks; an early operator breaks it first."""
    shapes = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (1, 16))
    found = opfuse.verify(MODEL, bundle, bisect=True, rtol=1e-7, opt_shapes=shapes)
    assert not found.passed
    nodes = [node.name for node in onnx.load(MODEL).graph.node]
    assert found.first_wrong
    print(found.first_wrong)
    assert nodes.index(found.first_wrong.split("'")[1]) < len(nodes) // 2


def test_a_planted_wrong_step_is_found(tmp_path: Path, bundle: Path, monkeypatch: Any) -> None:
    """Every AddRmsNorm has another epsilon than the model; ``bundle`` is there for its skips.

    The last operator but one of a norm may be its end: without its weight it is still one.
    """
    genuine = outline.attributes

    def wrong(node: onnx.NodeProto) -> dict[str, Any]:
        return genuine(node) | ({"epsilon": 1.0} if node.op_type == "AddRmsNorm" else {})

    monkeypatch.setattr(outline, "attributes", wrong)
    options: dict[str, Any] = {"lower": "plugin", "prove": False}
    path, reports = tmp_path / "wrong.opfuse", (tmp_path / "wrong.json",)
    opfuse.build(MODEL, path, backend="segmented", reports=reports, **options)
    found = opfuse.verify(MODEL, path, bisect=True)
    assert not found.passed
    norms = [step for step in Bundle.open(path).schedule.plugins() if step.op == "AddRmsNorm"]
    nodes = {node.name: node for node in onnx.load(MODEL).graph.node}
    last = nodes[norms[0].node.split("/")[0].strip("'")]
    ends = [last, *(node for node in nodes.values() if node.output[0] in last.input)]
    assert found.first_wrong in {f"{node.name!r} ({node.op_type})" for node in ends}


def test_the_profile_has_the_layers_of_every_engine(bundle: Path) -> None:
    (measured,) = opfuse.bench(bundle, iterations=5, warm_up=2).engines
    engines = [step for step in measured.steps if not step.plugin]
    assert all(step.layers for step in engines)
    assert all(us > 0 for step in engines for _, us in step.layers)


def test_tuning_writes_verdicts_and_builds_from_them(tmp_path: Path, bundle: Path) -> None:
    """``bundle`` is there for its skips."""
    options = {"backend": "segmented", "prove": False, "lock": tmp_path / "opfuse.lock"}
    shapes = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (1, 32))
    options |= {f"{level}_shapes": shapes for level in ("min", "opt", "max")}
    tuned = opfuse.build(MODEL, tmp_path / "a.opfuse", tune=True, **options)
    text = (tmp_path / "opfuse.lock").read_text()
    again = opfuse.build(MODEL, tmp_path / "b.opfuse", **options)
    assert [item.choice for item in again.lowering] == [item.choice for item in tuned.lowering]
    assert all("us" in item.reason for item in tuned.lowering)
    assert (tmp_path / "opfuse.lock").read_text() == text
    assert opfuse.verify(MODEL, tmp_path / "b.opfuse", opt_shapes=shapes).passed


def test_a_plugin_has_to_pay_at_every_point_of_the_profile(tmp_path: Path, bundle: Path) -> None:
    """From one token to a prompt; ``bundle`` is there for its skips."""
    names = ("input_ids", "attention_mask", "position_ids")
    sizes = {"min": (1, 1), "opt": (2, 64), "max": (4, 96)}
    options: dict[str, Any] = {
        f"{level}_shapes": dict.fromkeys(names, shape) for level, shape in sizes.items()
    }
    options |= {"backend": "segmented", "prove": False, "lock": tmp_path / "opfuse.lock"}
    tuned = opfuse.build(MODEL, tmp_path / "a.opfuse", tune=True, **options)
    for item in tuned.lowering:
        assert all(f"{point}: " in item.reason for point in sizes), item
    for shape in sizes.values():
        shapes = dict.fromkeys(names, shape)
        assert opfuse.verify(MODEL, tmp_path / "a.opfuse", opt_shapes=shapes).passed
