"""`opfuse build` and `opfuse plugins`: a real engine, and what may be missing."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from opfuse.errors import MissingComponent
from opfuse.runtime.library import find
from tests.small import model

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
PLUGIN_OPS = {"AddRmsNorm": 4, "GatedAct": 2, "QkNormRope": 2, "RmsNorm": 1}


@pytest.fixture
def library():
    try:
        return find()
    except MissingComponent as error:
        pytest.skip(error.what)


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def build(cli, output, *options):
    line = ["build", MODELS / "llama.onnx", "-o", output, "--backend", "tensorrt-rtx", "--json"]
    result = cli(*line, *options)
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_an_engine_with_plugin_layers(cli, tmp_path, rtx, library):
    report = build(cli, tmp_path / "llama.engine", "--report", tmp_path / "r.json")
    engine = report["engine"]
    assert engine["plugin_layers"] == PLUGIN_OPS
    written = (tmp_path / "llama.engine").read_bytes()
    assert engine["bytes"] == len(written)
    assert library.read_bytes() in written
    choices = [item["choice"] for item in report["lowering"]]
    assert choices.count("plugin") == sum(PLUGIN_OPS.values())
    fused = {kind: item["fused"] for kind, item in report["fusions"].items()}
    assert (fused["QkNormRope"], fused["Rope"], fused["qkv_merge"]) == (2, 4, 2)
    assert report["proof"]["failed"] == 0
    assert json.loads((tmp_path / "r.json").read_text()) == report


NORM_AND_SOFTMAX = """
    normed = GroupNormalization<num_groups=2, epsilon=1.0e-3>(x, gamma, beta)
    open = Sigmoid(normed)
    active = Mul(normed, open)
    scores = MatMul(q, k)
    scaled = Mul(scores, 0.5)
    logits = Where(keep, scaled, -inf)
    y = Softmax<axis=-1>(logits)
"""


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
def test_softmax_and_group_norm_become_plugin_layers(cli, tmp_path, rtx, library, dtype):
    inputs = "T[B, 6, H, W] x, T[B, 2, S, 4] q, T[B, 2, 4, L] k, bool[B, 1, 1, L] keep"
    weights = {"gamma": (6,), "beta": (6,)}
    outputs = "T[B, 2, S, L] y, T[B, 6, H, W] active"
    made = model(NORM_AND_SOFTMAX, inputs, outputs, weights, dtype, opset=21)
    onnx.save(made, tmp_path / "m.onnx")
    report = tmp_path / "r.json"
    line = ["build", tmp_path / "m.onnx", "-o", tmp_path / "m.engine", "--report", report]
    result = cli(*line, "--backend", "tensorrt-rtx", "--no-prove")
    assert result.code == 0, result.err
    engine = json.loads(report.read_text())["engine"]
    assert engine["plugin_layers"] == {"GroupNormSilu": 1, "MaskedSoftmax": 1}


@pytest.mark.parametrize("name", ["bert", "llama", "llama_fp16"])
def test_attention_in_half_precision_builds_for_usual_shapes(cli, tmp_path, rtx, name):
    """TensorRT for RTX refused these where its own fused attention met a Cast after the guard."""
    line = ["build", MODELS / f"{name}.onnx", "-o", tmp_path / "m.engine", "--fp16", "--no-prove"]
    shapes = ["--maxShapes", "input_ids:4x64" if name == "bert" else "input_ids:4x256"]
    result = cli(*line, *shapes, "--lower", "native", "--backend", "tensorrt-rtx")
    assert result.code == 0, result.err


def test_the_library_beside_the_engine(cli, tmp_path, rtx, library):
    report = build(cli, tmp_path / "llama.engine", "--no-embed-plugins", "--no-prove")
    assert report["engine"]["plugin_layers"] == PLUGIN_OPS
    assert library.read_bytes() not in (tmp_path / "llama.engine").read_bytes()
    assert (tmp_path / library.name).read_bytes() == library.read_bytes()


@pytest.mark.parametrize("lower", ["leave", "native"])
def test_an_engine_without_plugins(cli, tmp_path, rtx, lower, monkeypatch):
    monkeypatch.setenv("OPFUSE_PLUGINS", str(tmp_path / "none.so"))
    report = build(cli, tmp_path / "llama.engine", "--lower", lower, "--no-prove")
    assert report["engine"]["plugin_layers"] == {}
    assert (tmp_path / "llama.engine").stat().st_size > 0


def test_given_shapes_reach_the_engine(cli, tmp_path, rtx):
    shapes = ["--minShapes", "input_ids:1x4", "--optShapes=input_ids:2x16",
              "--maxShapes", "input_ids:[4,32]"]  # fmt: skip
    report = build(cli, tmp_path / "llama.engine", "--lower", "leave", "--no-prove", *shapes)
    ranges = {item["name"]: item["range"] for item in report["engine"]["io"]}
    assert ranges["attention_mask"] == ranges["input_ids"] == [[1, 4], [2, 16], [4, 32]]


def test_a_library_that_is_asked_for_and_missing(cli, llama, old_output, tmp_path):
    missing = tmp_path / "none.so"
    result = cli("build", llama, "-o", old_output, "--plugins", missing, "--no-prove")
    result.refused(3, str(missing))


def test_a_library_that_is_none(cli, llama, old_output, tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"not a library")
    cli("build", llama, "-o", old_output, "--plugins", bad, "--no-prove").refused(3, str(bad))


def test_a_backend_that_is_not_here(cli, llama, old_output):
    try:
        import tensorrt
    except ImportError:
        result = cli("build", llama, "-o", old_output, "--backend", "tensorrt", "--no-prove")
        result.refused(3, "tensorrt")
    else:
        pytest.skip(f"TensorRT {tensorrt.__version__} is installed")


@pytest.mark.parametrize(
    "options",
    [["--plugins", "none.so"], ["--lower", "plugin"]],
    ids=" ".join,
)
def test_what_is_missing_is_told_before_any_work(cli, llama, old_output, monkeypatch, options):
    monkeypatch.setenv("OPFUSE_PLUGINS", "none.so")
    result = cli("build", llama, "-o", old_output, *options)
    result.refused(3)
    assert "opfuse: load" not in result.err


def test_plugins_of_the_library(cli, library):
    result = cli("plugins", "--json")
    names = {op["name"] for op in json.loads(result.out)["ops"]}
    assert names >= {"RmsNorm", "AddRmsNorm", "AddLayerNorm", "GatedAct", "Rope", "QkNormRope"}
    text = cli("plugins").out
    assert [name for name in names if name not in text] == []


def test_plugins_without_a_library(cli, tmp_path):
    missing = tmp_path / "none.so"
    cli("plugins", "--plugins", missing).refused(3, str(missing))


@pytest.mark.parametrize("text", [None, "<<<<<<< ours", "{}"], ids=["missing", "conflict", "other"])
def test_a_named_lock_that_cannot_be_read_is_refused_before_any_work(cli, tmp_path, text):
    lock, engine = tmp_path / "my.lock", tmp_path / "m.engine"
    if text is not None:
        lock.write_text(text)
    result = cli("build", MODELS / "llama.onnx", "-o", engine, "--lock", lock)
    assert result.code == 2
    assert str(lock) in result.err
    assert "fix:" in result.err
    assert not engine.exists()
