"""Building real engines with TensorRT for RTX: what comes out, what is refused, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from opfuse import child
from opfuse.config import Config
from opfuse.engine.tensorrt_rtx import TensorRtRtx
from opfuse.errors import EngineError, InputError, MissingComponent, TimeLimit
from opfuse.progress import Progress
from opfuse.runtime.bundle import Bundle
from opfuse.stages import build as stage
from opfuse.stages.lower import lower
from tests.engine_models import ROOT, add_rms_norm, chain, model, plugins, value
from tests.small import fuse_model
from tests.small import model as small_model

pytest.importorskip("tensorrt_rtx")

needs_plugins = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")


class Steps(Progress):
    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, text, done=0, total=0):
        self.steps.append((text, done, total))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a model into tmp_path/out with every temporary file under tmp_path/temporary."""
    for folder in ("out", "private", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(made, plugin_library=None, progress=None, **options):
        output = tmp_path / "out" / "model.engine"
        config = Config(model=Path("model.onnx"), output=output, **options)
        return stage.build(
            made, tmp_path / "private", config, progress or Progress(), plugin_library
        )

    run.out = tmp_path / "out"
    run.temporary = tmp_path / "temporary"
    return run


def files(build):
    return sorted(path.name for path in build.out.iterdir())


def test_an_engine_and_what_was_read_back_from_it(build):
    made = add_rms_norm()
    lower(made, "leave", ())
    progress = Steps()
    info = build(made, progress=progress)
    engine = (build.out / "model.engine").read_bytes()
    assert (info.backend, info.bytes, info.path) == (
        "tensorrt-rtx",
        len(engine),
        str(build.out / "model.engine"),
    )
    assert info.layers == sum(info.layer_types.values()) > 0
    assert info.plugin_layers == {}
    assert set(info.dtypes) == {"fp16"}
    assert [(tensor.name, tensor.mode, tensor.dtype) for tensor in info.io] == [
        ("x", "input", "fp16"),
        ("residual", "input", "fp16"),
        ("projected.1", "output", "fp16"),
        ("sum.1", "output", "fp16"),
    ]
    assert info.io[0].range == ((1, 1, 64), (1, 128, 64), (8, 512, 64))
    assert info.why.startswith("the first usable one")
    assert json.dumps(asdict(info))
    assert any(total > 0 and text for text, _, total in progress.steps)
    assert files(build) == ["model.engine"]
    assert list(build.temporary.iterdir()) == []


def test_the_same_model_gives_the_same_engine(build):
    made = chain(3)
    assert build(made).sha256 == build(made).sha256


@needs_plugins
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_plugin_layers_are_counted_in_the_engine(build, dtype):
    made = add_rms_norm(3, dtype)
    lower(made, "auto", {"AddRmsNorm"})
    info = build(made, plugins())
    assert info.plugin_layers == {"AddRmsNorm": 3}
    assert info.bytes > plugins().stat().st_size


@needs_plugins
def test_a_library_that_is_not_embedded_stands_beside_the_engine(build):
    made = add_rms_norm(1)
    lower(made, "plugin", {"AddRmsNorm"})
    info = build(made, plugins(), embed_plugins=False)
    assert files(build) == [plugins().name, "model.engine"]
    assert info.bytes < plugins().stat().st_size
    assert "stands beside it" in info.notes[-1]


@needs_plugins
@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("h = MatMul(x, w)\nb = Add(h, bias)\ny = Relu(b)\n", "GemmAct"),
        (
            "h = MatMul(x, w)\ng, u = Split<axis=-1, num_outputs=2>(h)\n"
            "s = Sigmoid(g)\na = Mul(g, s)\ny = Mul(a, u)\n",
            "GatedGemm",
        ),
    ],
)
def test_products_are_plugin_layers(build, text, op):
    weights = {"w": (16, 32), "bias": (32,)} if op == "GemmAct" else {"w": (16, 32)}
    made = small_model(text, "T[2, 5, 16] x", "T y", weights, "float16")
    fused = fuse_model(made, library={op}).after
    lower(fused, "plugin", {op})
    assert build(fused, plugins()).plugin_layers == {op: 1}


@needs_plugins
def test_an_engine_without_plugin_layers_does_not_carry_the_library(build):
    assert build(chain(2), plugins()).bytes < plugins().stat().st_size


def test_a_fused_model_builds_without_any_library(build):
    assert build(add_rms_norm(2)).plugin_layers == {}


def test_external_weights_are_read_from_the_private_folder(build, tmp_path):
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["n", 64])],
        [value("y", ["n", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    inline = build(made)
    onnx.save(made, tmp_path / "private" / "m.onnx", save_as_external_data=True, size_threshold=0)
    saved = onnx.load(tmp_path / "private" / "m.onnx", load_external_data=False)
    assert saved.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert build(saved).sha256 == inline.sha256


def test_a_table_of_positions_bounds_the_assumed_sequence(build):
    made = model(
        [
            helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
            helper.make_node("Slice", ["table", "zero", "size", "zero"], ["positions"]),
            helper.make_node("Add", ["x", "positions"], ["y"]),
        ],
        [value("x", ["batch", "seq"])],
        [value("y", ["batch", "seq"])],
        [
            numpy_helper.from_array(np.ones(77, np.float32), "table"),
            numpy_helper.from_array(np.zeros(1, np.int64), "zero"),
        ],
    )
    info = build(made)
    assert info.io[0].range == ((1, 1), (1, 77), (8, 77))
    assert "seq was taken to be 1 to 77" in " ".join(info.notes)
    with pytest.raises(EngineError, match="does not take the shapes of the profile"):
        build(made, min_shapes={"x": (1, 10)}, max_shapes={"x": (1, 100)})


def test_given_shapes_are_the_profile(build):
    low, usual, high = ({"t0": (size, 16)} for size in (2, 4, 6))
    info = build(chain(2), min_shapes=low, opt_shapes=usual, max_shapes=high)
    assert info.io[0].range == ((2, 16), (4, 16), (6, 16))
    assert info.notes == ()


def test_a_shape_for_an_input_that_is_not_there(build):
    with pytest.raises(InputError, match=r"'nope'(.|\n)*the inputs are t0 \[batch, 16\]"):
        build(chain(1), opt_shapes={"nope": (1,)})
    assert files(build) == []


def test_nodes_that_cannot_be_imported_are_named(build):
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "/first", domain="my.ops"),
        helper.make_node("Relu", ["a"], ["y"], "/second"),
    ]
    made = model(nodes, [value("x", [4])], [value("y", [4])])
    with pytest.raises(EngineError, match=r"/first \(Frobnicate\)") as caught:
        build(made)
    assert "--plugins" in caught.value.fix
    assert files(build) == []


def test_an_input_whose_values_are_shapes_is_refused(build):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [value("x", ["n", 4]), value("shape", [2], TensorProto.INT64)]
    made = model(nodes, inputs, [value("y", [None, None])])
    with pytest.raises(EngineError, match="values of input 'shape'"):
        build(made)


@needs_plugins
def test_a_bundle_of_segments(build):
    made = add_rms_norm(3)
    lower(made, "plugin", {"AddRmsNorm"})
    info = build(made, plugins(), backend="segmented")
    opened = Bundle.open(build.out / "model.engine")
    assert info.backend == "segmented"
    assert info.plugin_layers == {"AddRmsNorm": 3}
    assert info.bytes == (build.out / "model.engine").stat().st_size
    assert [type(step).__name__ for step in opened.schedule.steps] == [
        *("PluginStep", "EngineStep") * 3
    ]
    assert opened.read("engines/0").startswith(b"vtrt")
    assert opened.holds("plugins/libopfuse_plugins.so")
    assert info.io[0].range == ((1, 1, 64), (1, 128, 64), (8, 512, 64))
    assert "takes 2.1 MB" in info.notes[-1]
    assert files(build) == ["model.engine"]
    assert list(build.temporary.iterdir()) == []


@needs_plugins
def test_the_same_model_gives_the_same_bundle(build):
    digests = set()
    for _ in range(2):
        made = add_rms_norm(2)
        lower(made, "plugin", {"AddRmsNorm"})
        digests.add(build(made, plugins(), backend="segmented", embed_plugins=False).sha256)
    assert len(digests) == 1
    assert files(build) == [plugins().name, "model.engine"]


def test_a_failed_bundle_leaves_the_old_one(build):
    (build.out / "model.engine").write_bytes(b"old")
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], "/first", domain="my.ops")]
    made = model(nodes, [value("x", [4])], [value("y", [4])])
    with pytest.raises(EngineError, match=r"/first"):
        build(made, backend="segmented")
    assert (build.out / "model.engine").read_bytes() == b"old"
    assert files(build) == ["model.engine"]


def test_a_broken_plugin_library_is_refused(build, tmp_path):
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not an ELF file")
    with pytest.raises(EngineError, match=r"cannot load the plugin library .*libbroken\.so"):
        build(chain(1), broken)


def test_a_crash_of_the_parser_is_an_engine_error(build):
    """A function that calls itself overflows every stack."""
    call = helper.make_node("Loop_", ["x"], ["y"], domain="mine")
    function = helper.make_function(
        "mine", "Loop_", ["x"], ["y"], [call], [helper.make_opsetid("mine", 1)]
    )
    made = model([call], [value("x", [4])], [value("y", [4])], functions=[function])
    with pytest.raises(EngineError, match="tensorrt-rtx was killed by SIGSEGV"):
        build(made)
    assert files(build) == []


def test_the_timing_cache_is_left_alone_where_it_has_no_use(build, tmp_path):
    cache = tmp_path / "timing.cache"
    info = build(chain(2), timing_cache=cache)
    assert not cache.exists()
    assert "has no use for a timing cache" in info.notes[-1]


def test_kernel_timings_are_kept_beside_the_engines(build, tmp_path, monkeypatch):
    """TensorRT for RTX writes an empty timing cache, if it is asked for one."""
    monkeypatch.setattr(TensorRtRtx, "uses_timing_cache", True)
    seen = []
    genuine = stage.kept.fetch_timings

    def fetch(cache, backend, target):
        genuine(cache, backend, target)
        seen.append(target.exists())

    monkeypatch.setattr(stage.kept, "fetch_timings", fetch)
    for length in (2, 3):
        info = build(chain(length), cache=tmp_path / "cache")
        assert info.cache["kept"]
    assert seen == [False, True]
    assert len(list((tmp_path / "cache" / "v1" / "timing").iterdir())) == 1
    assert len(list((tmp_path / "cache" / "v1" / "engines").iterdir())) == 2
    named = tmp_path / "timing.cache"
    build(chain(4), cache=tmp_path / "cache", timing_cache=named)
    assert len(seen) == 2
    assert named.stat().st_size > 0


def test_check_parses_and_writes_nothing(build, tmp_path):
    config = Config(model=Path("model.onnx"))
    info = stage.check(chain(3), tmp_path / "private", config, Progress())
    assert (info.read_from, info.layers, info.bytes) == ("network", 3, 0)
    assert files(build) == []


def test_a_failed_build_leaves_the_old_engine(build):
    (build.out / "model.engine").write_bytes(b"old")
    with pytest.raises(TimeLimit):
        build(chain(3000), time_limit=3)
    assert (build.out / "model.engine").read_bytes() == b"old"
    assert files(build) == ["model.engine"]
    assert list(build.temporary.iterdir()) == []


def test_a_chain_of_4000_nodes_builds(build):
    assert build(chain(4000)).bytes > 0


def test_the_default_stack_would_overflow(build, monkeypatch):
    monkeypatch.setattr(child, "run", partial(child.run, stack_bytes=1 << 20))
    with pytest.raises(EngineError, match="tensorrt-rtx was killed by SIGSEGV"):
        build(chain(1000))


def test_enterprise_tensorrt_is_missing_here(build):
    pytest.importorskip("tensorrt_rtx")
    if stage.select("auto").backend.name == "tensorrt":
        pytest.skip("this machine has TensorRT and a GPU")
    with pytest.raises(MissingComponent):
        build(chain(1), backend="tensorrt")


PROGRAM = """
import sys, tempfile
from pathlib import Path
sys.path[:0] = {paths!r}
from opfuse.config import Config
from opfuse.progress import Progress
from opfuse.stages.build import build
from tests.engine_models import chain

class Tell(Progress):
    def step(self, text, done=0, total=0):
        print(text, flush=True)

with tempfile.TemporaryDirectory() as private:
    config = Config(model=Path("m.onnx"), output=Path({output!r}))
    build(chain(3000), Path(private), config, Tell())
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_an_interrupt_during_the_build_ends_it_within_a_second(tmp_path, number, code):
    temporary = tmp_path / "temporary"
    output = tmp_path / "out" / "model.engine"
    for folder in (temporary, output.parent):
        folder.mkdir()
    paths = [str(ROOT), *(path for path in sys.path if path)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(paths=paths, output=str(output))],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert any("Optimizing" in line or "Building" in line for line in parent.stdout)
    (builder,) = psutil.Process(parent.pid).children()
    assert os.getpgid(builder.pid) == builder.pid != os.getpgid(parent.pid)
    time.sleep(0.5)  # into the part that ignores SIGINT
    began = time.monotonic()
    parent.send_signal(number)
    assert parent.wait(10) == code
    assert time.monotonic() - began < 1.0
    assert not builder.is_running()
    assert list(temporary.iterdir()) == []
    assert list(output.parent.iterdir()) == []
