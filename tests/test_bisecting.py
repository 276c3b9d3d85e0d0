"""`opfuse verify --bisect`: the first wrong operator, by engines that have one more output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from opfuse import bisecting, pipeline
from opfuse.bisecting import Place, bisect, first_wrong
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.files import file_hash
from opfuse.numerics.compare import compare
from opfuse.numerics.session import OnnxRuntime
from opfuse.numerics.whole import Comparison
from opfuse.runtime import bundle
from opfuse.stages.report_text import comparison_as_text
from opfuse.stages.verify import verify
from tests.small import model

TEXT = """
    a = MatMul(x, w)
    n = Shape(a)
    s = Sqrt(a)
    t = Add(a, b)
    y = Relu(t)"""


@pytest.mark.parametrize("first", range(9))
def test_the_first_wrong_place_is_found_in_few_steps(first):
    places, asked = [Place(onnx.ValueInfoProto(), str(number)) for number in range(9)], []

    def is_wrong(place):
        asked.append(place)
        return int(place.operator) >= first

    assert first_wrong(places, is_wrong) is places[first]
    assert len(asked) <= 5


@pytest.mark.parametrize("places", [[], [Place(onnx.ValueInfoProto(), "y (Relu)")]])
def test_where_nothing_is_wrong_nothing_is_found(places):
    assert first_wrong(places, lambda place: False) is None


@pytest.fixture
def path(tmp_path):
    """With its weights in a file of their own."""
    made = model(TEXT, "T[B, 8] x", "T y", {"w": (8, 8), "b": (8,)})
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    return tmp_path / "m.onnx"


@pytest.fixture
def built(monkeypatch):
    """Engines give the values of the model, but twice those from ``t`` on."""
    seen = []

    def run(config, goal):
        proto = onnx.load(config.model)  # finds the weights
        names = [item.name for item in proto.graph.output]
        seen.append((goal, config, names))

    def compared(first, second, config):
        _, built, names = seen[-1]
        assert (first, second) == (built.model, built.output)
        feeds = {"x": np.ones((2, 8), np.float32)}
        values = dict(zip(names, OnnxRuntime(onnx.load(first)).run(feeds), strict=True))
        apart = {n: compare(v, v * (2 if n in "ty" else 1)) for n, v in values.items()}
        return Comparison(apart, 1e-4)

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "verify", compared)
    return seen


@pytest.mark.parametrize(
    ("magic", "backend", "suffix"),
    [
        (b"PK\x03\x04", "segmented", ".opfuse"),
        (b"vtrt", "tensorrt-rtx", ".engine"),
        (b"ptrt", "tensorrt", ".engine"),
    ],
)
def test_the_model_is_built_with_more_outputs_as_the_engine_was(
    path, built, magic, backend, suffix
):
    engine = path.with_name("m.engine")
    engine.write_bytes(magic + b"more")
    found = bisect(engine, path, Config(path, opt_shapes={"x": (2, 8)}, rtol=1e-4))
    assert found == "'Add_3' (Add)"
    assert {goal for goal, _, _ in built} == {"build"}
    for _, config, names in built:
        assert (config.backend, config.output.suffix, config.prove) == (backend, suffix, False)
        assert config.min_shapes == config.max_shapes == {"x": (2, 8)}
        assert names[0] == "y"
        assert len(names) < 3
    assert {name for _, _, names in built for name in names[1:]} >= {"t"}
    assert all("n" not in names for _, _, names in built)  # integers


def test_the_report_beside_the_engine_names_the_precision(path, built):
    engine, facts = path.with_name("m.engine"), {"precision": "fp16", "io_precision": "fp16"}
    engine.write_bytes(b"vtrt and more")
    report = {"engine": {"sha256": file_hash(engine)}, "precision": {**facts, "casts": 2}}
    for text, want in ((json.dumps(report), "fp16"), ("{}", "keep")):
        engine.with_suffix(".json").write_text(text)
        bisect(engine, path, Config(path, opt_shapes={"x": (2, 8)}))
        _, config, _ = built[-1]
        assert (config.precision, config.io_precision) == (want, want)


RANGE = [[1, 8], [4, 8], [9, 8]]


def test_it_is_built_with_the_options_of_the_engine(path, built):
    engine = path.with_name("m.engine")
    engine.write_bytes(b"vtrt and more")
    ports = [{"name": "x", "range": RANGE}, {"name": "y", "range": None}]
    report = {
        "engine": {"sha256": file_hash(engine), "io": ports},
        "asked": {"lower": "plugin", "calibrate": ["a.npz"]},
        "precision": {"precision": "fp16", "io_precision": "keep"},
    }
    engine.with_suffix(".json").write_text(json.dumps(report))
    bisect(engine, path, Config(path, opt_shapes={"x": (2, 8)}))
    _, config, _ = built[-1]
    assert (config.lower, config.calibrate) == ("plugin", (Path("a.npz"),))
    shapes = [config.min_shapes, config.opt_shapes, config.max_shapes]
    assert shapes == [{"x": (1, 8)}, {"x": (4, 8)}, {"x": (9, 8)}]


def test_a_bundle_tells_its_shapes_itself_and_runs_in_those_of_the_comparison(
    path, built, monkeypatch
):
    engine, compared, ran = path.with_name("m.opfuse"), pipeline.verify, []
    bundle.write(engine, {"profile": {"x": RANGE}}, {})
    monkeypatch.setattr(pipeline, "verify", lambda *given: ran.append(given[2]) or compared(*given))
    bisect(engine, path, Config(path, opt_shapes={"x": (2, 8)}))
    assert {tuple(c.max_shapes.items()) for _, c, _ in built} == {(("x", (9, 8)),)}
    assert {tuple(c.opt_shapes.items()) for c in ran} == {(("x", (2, 8)),)}


def test_verify_looks_only_where_something_differs(path, monkeypatch):
    results = [Comparison({}, 1e-4), Comparison({"y": compare(np.ones(1), np.ones(1) * 2)}, 1e-4)]
    asked = []
    monkeypatch.setattr(bisecting, "bisect", lambda *given: asked.append(given[:2]) or "t (Add)")
    for result, engine_first in ((results[0], False), (results[1], False), (results[1], True)):
        monkeypatch.setattr("opfuse.stages.verify.verify", lambda a, b, c, result=result: result)
        engine = Path("m.engine")
        pair = (engine, path) if engine_first else (path, engine)
        found = pipeline.verify(*pair, Config(path, bisect=True))
        assert found.first_wrong == (None if result is results[0] else "t (Add)")
    assert asked == [(engine, path)] * 2
    assert "the first operator beyond it is t (Add)" in comparison_as_text(found)


def test_two_models_have_no_operator_to_look_for(path):
    with pytest.raises(InputError, match="--bisect is for an engine"):
        verify(path, path, Config(path, bisect=True))
