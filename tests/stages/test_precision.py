"""The stage: what it refuses, what it tells, external weights, and engines that are not fp16."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import opfuse
from opfuse.cli import main
from opfuse.config import Config
from opfuse.engine.layers import Layer
from opfuse.errors import CheckFailed, InputError
from opfuse.numerics.compare import Difference
from opfuse.numerics.whole import Comparison
from opfuse.precision.result import Kept, Precision
from opfuse.progress import Progress
from opfuse.stages import precision as stage
from opfuse.stages.build import build
from opfuse.stages.report_text import as_text
from tests.engine_models import chain
from tests.small import model

PLAIN = Precision("fp16", "keep", "drawn", {"fp16": 1}, {"fp16": 1}, {"fp16": 2}, 0, 0, ())


class Engine:
    """What the stage reads of an engine."""

    def __init__(self, *layers: Layer) -> None:
        self.fp32_products = layers


def gemm(name: str, *origins: str) -> Layer:
    return Layer(name, "gemm", ("fp32",), origins, ("fp32",))


def test_products_in_fp32_are_named():
    layers = [gemm("a_myl0_1", "a"), gemm("b.1_myl0_7"), gemm("c_myl0_9", "c")]
    with pytest.raises(CheckFailed, match="asked for in fp16") as refusal:
        stage.check_engine(Engine(*layers), PLAIN)
    assert "a_myl0_1 (gemm), b.1_myl0_7 (gemm), c_myl0_9 (gemm)" in str(refusal.value)
    assert refusal.value.exit_code == 1


def test_products_that_a_rule_keeps_in_fp32_pass():
    inside = "node_of_product | attention/FlashAttention (FlashAttention_body)"
    kept = replace(PLAIN, names=frozenset({"a", "b", "attention/FlashAttention"}))
    layers = [gemm("a_myl0_1", "a"), gemm("b.1_myl0_7"), gemm("x_myl0_2", inside)]
    stage.check_engine(Engine(*layers), kept)
    with pytest.raises(CheckFailed, match=r"fp32: c_myl0_9 \(gemm\)$|fp32: c_myl0_9 \(gemm\)\n"):
        stage.check_engine(Engine(*layers, gemm("c_myl0_9", "c")), kept)


def test_many_layers_are_counted():
    with pytest.raises(CheckFailed, match="and 8 more"):
        stage.check_engine(Engine(*(gemm(f"g{i}_myl0_{i}") for i in range(20))), PLAIN)


def test_an_fp32_engine_is_caught_and_not_written(tmp_path):
    """Planted: the model that is built was never converted."""
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "out.engine"
    output.write_bytes(b"the old one")
    config = Config(tmp_path / "m.onnx", output, backend="tensorrt-rtx")
    accept = partial(stage.check_engine, precision=PLAIN)
    planted = model("h = MatMul(x, w)\ny = Tanh(h)", "T[B, 64] x", weights={"w": (64, 64)})
    with pytest.raises(CheckFailed, match=r"compute in fp32: .*\(runtime_fusion\)"):
        build(planted, tmp_path, config, Progress(), accept=accept)
    assert output.read_bytes() == b"the old one"


def test_a_conversion_that_did_nothing_is_caught_in_the_engine(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("opfuse.precision.rewrite.Rewrite.run", lambda self: None)
    text = "h = MatMul(x, w)\ny = MatMul(h, w)"
    onnx.save(model(text, "T[B, 64] x", weights={"w": (64, 64)}), tmp_path / "m.onnx")
    paths = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.engine")]
    assert main(["build", *paths, "--fp16", "--backend", "tensorrt-rtx", "--no-prove"]) == 1
    said = capsys.readouterr().err
    assert "asked for in fp16, and these layers compute in fp32: MatMul_0" in said
    assert "MatMul_1" in said
    assert not (tmp_path / "m.engine").exists()


def test_an_engine_that_is_what_was_asked_for(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    source = tmp_path / "m.onnx"
    text = "h = MatMul(x, w)\nt = Tanh(h)\ny = MatMul(t, v)"
    heavy = np.full((64, 8), 7e4, np.float32)
    onnx.save(model(text, "T[B, 64] x", weights={"w": (64, 64), "v": heavy}), source)
    report = opfuse.build(
        source, tmp_path / "m.engine", precision="fp16", backend="tensorrt-rtx", lower="leave"
    ).as_dict()
    engine = report["engine"]
    assert engine["products"] == {"fp16": 1, "fp32": 1}
    assert [layer["type"] for layer in engine["fp32_products"]] == ["gemm"]
    assert [item["reason"] for item in report["precision"]["kept"]] == [
        "v holds 7e+04, fp16 ends at 65504"
    ]
    assert report["precision"]["products"] == {"fp16": 1, "fp32": 1}


def test_a_chain_of_fp16_products_has_none_in_fp32(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    config = Config(tmp_path / "m.onnx", tmp_path / "out.engine", backend="tensorrt-rtx")
    info = build(chain(3), tmp_path, config, Progress())
    assert info.fp32_products == ()


def test_a_model_that_does_not_run_has_no_ranges(tmp_path):
    planted = model("f = Reshape(x, [3, 5])\ny = MatMul(f, w)", "T[B, 4] x", weights={"w": (5, 2)})
    onnx.save(planted, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no activation can be measured") as refusal:
        opfuse.fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", precision="fp16", prove=False)
    assert "--calibrate" in str(refusal.value)
    assert not (tmp_path / "f.onnx").exists()
    report = opfuse.fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", precision="bf16", prove=False)
    assert "not measured" in report.as_dict()["precision"]["ranges"]


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (Difference(1, 0.05, 1.0, "", 0.01), True),
        (Difference(1, 0.2, 1.0, "", 0.01), False),
        (Difference(1, 0.05, 1.0, "", 0.03), False),
        (Difference(0, 0.0, 1.0, "NaN in 1 of 2 values", 0.0), False),
    ],
)
def test_what_passes(found, passes):
    assert stage._passed(Comparison({"y": found}, 0.02), 0.02) == passes
    assert not stage._passed(Comparison({}, 0.02, refused="does not run"), 0.02)


def test_a_conversion_that_is_too_far_off_is_not_written(tmp_path):
    planted = model("h = MatMul(x, w)\ny = Tanh(h)", "T[B, 64] x", weights={"w": (64, 64)})
    onnx.save(planted, tmp_path / "m.onnx")
    with pytest.raises(CheckFailed, match="in bf16 the model does not compute what it did") as seen:
        opfuse.fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", precision="bf16", rtol=1e-4)
    assert "--precision bf16" not in seen.value.fix  # it is that already
    assert not (tmp_path / "f.onnx").exists()


def test_external_weights_are_cast_on_their_way(tmp_path):
    """They are streamed into one file; two layers with one weight keep one."""
    text = "a = MatMul(x, w)\nb = MatMul(a, w)\ny = MatMul(b, v)"
    made = model(text, "T[B, 300] x", weights={"w": (300, 300), "v": (300, 200)})
    onnx.save(
        made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    target = tmp_path / "f.onnx"
    report = opfuse.fuse(tmp_path / "m.onnx", target, precision="fp16").as_dict()
    (data,) = tmp_path.glob("f.*.data")
    assert data.stat().st_size < 2 * (300 * 300 + 300 * 200) + 3 * 4096
    after = onnx.load(target)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    before = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    for name in ("w", "v"):
        assert found[name].dtype == np.float16
        assert (found[name] == before[name].astype(np.float16)).all()
    assert report["precision"]["weights"] == {"fp16": 2 * (300 * 300 + 300 * 200)}


def test_merged_weights_in_files_are_cast_too(tmp_path):
    text = "gate = MatMul(x, wg)\nup = MatMul(x, wu)\ns = Sigmoid(gate)\na = Mul(gate, s)\n"
    text += "y = Mul(a, up)"
    made = model(text, "T[S, 150] x", weights={"wg": (150, 170), "wu": (150, 170)}, opset=17)
    onnx.save(
        made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    opfuse.fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", precision="bf16")
    (merged,) = [t for t in onnx.load(tmp_path / "f.onnx").graph.initializer if len(t.dims) == 2]
    assert (merged.data_type, list(merged.dims)) == (TensorProto.BFLOAT16, [150, 340])
    wide = onnx.numpy_helper.to_array(merged).astype(np.float32)
    want = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert np.allclose(wide, np.concatenate(want, 1), rtol=2**-8)


def test_the_report_says_it_to_people_and_machines(tmp_path):
    heavy = np.full((64, 8), 7e4, np.float32)
    text = "h = MatMul(x, w)\nt = Tanh(h)\ny = MatMul(t, v)"
    onnx.save(model(text, "T[B, 64] x", weights={"w": (64, 64), "v": heavy}), tmp_path / "m.onnx")
    report = opfuse.fuse(tmp_path / "m.onnx", tmp_path / "f.onnx", precision="fp16")
    section = json.loads(report.as_json())["precision"]
    assert list(section) == [
        "precision", "io_precision", "ranges", "nodes", "products", "weights", "casts",
        "casts_before", "kept", "comparison",
    ]  # fmt: skip
    shown = as_text(report)
    assert "precision: fp16; 1 products" in shown
    assert "v holds 7e+04, fp16 ends at 65504" in shown
    assert "as the original, every operator rounded to fp16" in shown


def test_names_from_a_model_cannot_write_to_the_terminal():
    from opfuse.stages.report import Report

    facts = {"path": "m", "opset": 18, "nodes": 1, "fused_nodes": 1, "output": None}
    odd = replace(PLAIN, kept=(Kept("[red]a\x1b[2J", "Exp", "because"),))
    shown = as_text(Report(facts, precision=odd))
    assert "\x1b" not in shown
    assert "[red]a\\x1b" in shown
