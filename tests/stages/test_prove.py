"""The proof stage: every fusion once, in child processes, and then the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from models import tiny
from opfuse.config import Config
from opfuse.errors import EngineError, TimeLimit
from opfuse.graph.dims import symbol
from opfuse.progress import Progress
from opfuse.stages.fuse import export, fuse
from opfuse.stages.load import Source, load
from opfuse.stages.normalise import normalise
from opfuse.stages.prove import prove
from tests.matches import Deadly, constant, joined, match

MODELS = {"llama": tiny.llama, "bert": tiny.bert, "vit": tiny.vit}


@pytest.fixture
def source(tmp_path):
    return load(tiny.bert().write(tmp_path / "bert.onnx"))


def fused(source):
    result = fuse(normalise(source))
    return export(result, source), result


def proof_of(source, model, result, **options):
    config = Config(source.path, **options)
    return prove(source, model, result.graph, result.matches, config, Progress())


def proof_of_matches(source, matches, progress=None, **options):
    """The matches alone: what is proven of the whole is that it equals itself."""
    config = Config(source.path, **options)
    graph = gs.import_onnx(source.proto)
    return prove(source, source.proto, graph, matches, config, progress or Progress())


def doubling(signature, after="y = Add(x, x)"):
    return match(
        "two = Constant<value_float: float = 2.0>()\ny = Mul(x, two)",
        after,
        ["x: float[n, 8]"],
        ["y: float[n, 8]"],
        signature=signature,
    )


def crashing(signature):
    one = doubling(signature)
    spec = replace(one.before.inputs[0], shape=(Deadly(symbol("n").terms), 8))
    return replace(one, before=replace(one.before, inputs=(spec,)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_we_fuse_is_proven(tmp_path, name, dtype):
    source = load(MODELS[name](dtype=dtype).write(tmp_path / "model.onnx"))
    model, result = fused(source)
    proof = proof_of(source, model, result)
    assert [(failure.kind, failure.reason) for failure in proof.failed] == []
    assert proof.matches == len({one.signature for one in result.matches}) > 0
    assert proof.whole.passed
    assert not proof.whole.not_run
    assert set(proof.whole.outputs) == {info.name for info in source.proto.graph.output}
    assert proof.max_rel_err < (1e-4 if dtype == np.float32 else 2e-2)


def test_external_and_merged_weights_are_read_where_they_lie(tmp_path):
    sizes = {"hidden": 256, "intermediate": 512, "layers": 3}
    source = load(tiny.llama(**sizes).write(tmp_path / "model.onnx", external=True))
    model, result = fused(source)
    proof = proof_of(source, model, result)
    assert proof.failed == ()
    assert proof.whole.passed
    assert not proof.whole.not_run


def test_equal_matches_are_proven_once(source):
    progress = Steps()
    matches = [doubling("a"), doubling("a"), doubling("b")]
    proof = proof_of_matches(source, matches, progress)
    assert proof.matches == 2
    assert progress.totals == {0, 2}
    assert proof.failed == ()


class Steps(Progress):
    def __init__(self):
        super().__init__()
        self.totals = {0}

    def step(self, text, done=0, total=0):
        self.totals.add(total)


def test_a_wrong_fusion_is_reported_with_its_places_and_the_rest_stay(source):
    wrong = doubling("wrong", "y = Neg(x)")
    matches = [doubling("a"), wrong, replace(wrong, anchor="elsewhere"), doubling("b")]
    proof = proof_of_matches(source, matches)
    assert [failure.signature for failure in proof.failed] == ["wrong"]
    assert proof.failed[0].nodes == ("wrong", "elsewhere")
    assert "relative error" in proof.vetoes["wrong"]
    assert proof.whole is None
    assert proof.matches == 3


def test_a_crash_loses_only_the_one_that_crashed(source):
    matches = [doubling("a"), crashing("dies"), doubling("wrong", "y = Neg(x)"), doubling("b")]
    proof = proof_of_matches(source, matches)
    assert [failure.signature for failure in proof.failed] == ["dies", "wrong"]
    assert "SIGSEGV" in proof.vetoes["dies"]
    assert "relative error" in proof.vetoes["wrong"]


def test_a_crash_of_the_last_one_is_a_failure_too(source):
    proof = proof_of_matches(source, [doubling("a"), crashing("dies")])
    assert list(proof.vetoes) == ["dies"]


def heavy(signature):
    """The merge of two matrices of 36 MiB each."""
    sizes = (3072, 3072)
    parts = [constant(name, np.broadcast_to(np.float32(1), sizes)) for name in ("a", "b")]
    return match(
        "y = MatMul(x, a)\nz = MatMul(x, b)",
        "t = MatMul(x, w)\ny, z = Split<axis: int = -1, num_outputs: int = 2>(t)",
        ["x: float[n, 3072]"],
        ["y: float[n, 3072]", "z: float[n, 3072]"],
        [*parts, joined("w", parts, 1)],
        signature=signature,
    )


def test_what_is_too_large_to_run_alone_is_left_to_the_whole_model(source, monkeypatch):
    monkeypatch.setattr("opfuse.numerics.extract.BUDGET", 100 << 20)
    proof = proof_of_matches(source, [doubling("a"), heavy("large")])
    assert proof.failed == ()
    assert proof.matches == 2
    unrunnable = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 8] a, float[m, 9] b) => (float[n, 8] y) { y = Add(a, b) }"""
    )
    source = replace(source, proto=unrunnable)
    proof = proof_of_matches(source, [doubling("a"), heavy("large")])
    assert "weights take 144 MiB" in proof.vetoes["large"]


def test_what_has_no_known_shape_fails_closed(source):
    unknown = doubling("unknown")
    spec = replace(unknown.before.inputs[0], shape=None)
    before = replace(unknown.before, inputs=(spec,))
    proof = proof_of_matches(source, [replace(unknown, before=before), doubling("b")])
    assert "rank of x is not known" in proof.vetoes["unknown"]


def test_a_wrong_whole_model_is_seen(source):
    model, result = fused(source)
    tensor = [t for t in model.graph.initializer if len(t.dims) == 2][-1]
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name)
    )
    proof = proof_of(source, model, result)
    assert proof.failed == ()
    assert not proof.whole.passed
    assert proof.whole.max_rel_err > 1e-3


def test_a_whole_model_that_does_not_run_any_more_is_seen(source):
    model, result = fused(source)
    model.graph.node[-1].input[0] = "nowhere"
    proof = proof_of(source, model, result)
    assert not proof.whole.passed
    assert "nowhere" in proof.whole.refused


def test_an_original_that_cannot_run_is_a_note_not_a_failure(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[n, 8] a, float[m, 9] b) => (float[n, 8] y) { y = Add(a, b) }"""
    model = onnx.parser.parse_model(text)
    source = Source(tmp_path / "odd.onnx", model, tmp_path)
    proof = proof_of_matches(source, [doubling("a")])
    assert proof.whole.passed
    assert "Add" in proof.whole.not_run


def test_a_model_of_one_size_only_runs_at_the_given_shapes(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[n, m] a) => (float[k] y) <int64[1] s = {37}> { y = Reshape(a, s) }"""
    source = Source(tmp_path / "odd.onnx", onnx.parser.parse_model(text), tmp_path)
    assert proof_of_matches(source, [doubling("a")]).whole.not_run
    whole = proof_of_matches(source, [doubling("a")], opt_shapes={"a": (1, 37)}).whole
    assert (whole.not_run, whole.passed, list(whole.outputs)) == ("", True, ["y"])


@pytest.mark.parametrize(("model", "said"), [("original", "not_run"), ("fused", "refused")])
def test_a_crash_of_a_whole_model_is_laid_to_the_one_that_ran(source, monkeypatch, model, said):
    def dying(function, args, *, on_event, **options):
        on_event({"model": model, "text": model})
        raise EngineError("it was killed by SIGSEGV")

    monkeypatch.setattr("opfuse.child.run", dying)
    proof = proof_of_matches(source, [])
    assert "SIGSEGV" in getattr(proof.whole, said)
    assert proof.whole.passed == (model == "original")


def test_the_time_limit_holds(source):
    with pytest.raises(TimeLimit):
        proof_of_matches(source, [doubling("a")], time_limit=0.01)


def test_the_tolerance_can_be_set(source):
    text = "s = Add(x, x)\nt = Constant<value_float: float = 1.001>()\ny = Mul(s, t)"
    nearly = doubling("a", text)
    assert proof_of_matches(source, [nearly]).failed
    assert proof_of_matches(source, [nearly], rtol=0.1).failed == ()


def test_a_child_that_does_not_start_is_no_failure_of_a_fusion(source, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", str(Path(__file__).parent))
    with pytest.raises(EngineError):
        proof_of_matches(source, [doubling("a")])
