"""opfuse check: the limits of an engine's size and time, and whose engine it is."""

from __future__ import annotations

import json

import pytest

import opfuse
from opfuse.runtime.timing import Latency, Measurement
from tests.locked import LOCK, bench_report, built, edited, failures


def test_a_slower_time(cli, place):
    assert cli("check", "bert.onnx", "--update", "--bench", bench_report(place, 500.0)).code == 0
    bounds = json.loads((place / LOCK).read_text())["bounds"]
    assert bounds["latency_us"] == {"median": 550, "gpu": "NVIDIA H100", "shapes": {"x": [1, 8]}}
    assert cli("check", "bert.onnx", "--bench", bench_report(place, 549.0)).code == 0
    result = cli("check", "bert.onnx", "--bench", bench_report(place, 551.0))
    assert result.code == 1
    assert failures(result) == [
        "FAILED bounds.latency_us: a run takes 551.0 us, the lock allows 550 us"
    ]
    result = cli("check", "bert.onnx", "--bench", bench_report(place, 1.0, "NVIDIA L4"))
    assert result.code == 1
    assert "timed with other GPU than the lock's: NVIDIA H100 -> NVIDIA L4" in result.out


def test_an_engine_and_its_time_are_tied_to_the_model(cli, place):
    engine = built(place, "bert.engine", bytes(1000))
    bench = bench_report(place, 500.0, engine="bert.engine")
    options = ["--engine", engine, "--bench", bench]
    assert cli("check", "bert.onnx", "--update", *options).code == 0
    result = cli("check", "bert.onnx", *options)
    assert (result.code, "skipped" in result.out) == (0, False)
    (place / "other.onnx").write_bytes((place / "bert.onnx").read_bytes() + bytes([0x12, 1, 65]))
    built(place, "bert.engine", bytes(1000), model="other.onnx")
    result = cli("check", "bert.onnx", *options)
    assert result.code == 1
    (line,) = failures(result)
    assert "bert.engine was built from another model than bert.onnx: SHA-256 " in line
    cli("check", "bert.onnx", "--update", *options).refused(2, "another model", "build it again")
    built(place, "bert.engine", bytes(999))
    result = cli("check", "bert.onnx", *options)
    (line,) = failures(result)
    assert "bert.engine was timed: SHA-256 " in line
    cli("check", "bert.onnx", "--update", *options).refused(2, "another engine", "time it again")


def test_what_ties_nothing_is_told(cli, place):
    (place / "bert.engine").write_bytes(bytes(1000))
    bench = bench_report(place, 500.0)
    result = cli("check", "bert.onnx", "--engine", "bert.engine", "--bench", bench)
    assert result.code == 0
    assert "skipped bounds.engine: nothing tells which model bert.engine was built" in result.out
    assert "skipped bounds.timed: nothing tells which engine was timed" in result.out


def test_a_model_is_no_engine(cli, place):
    result = cli("check", "bert.onnx", "--engine", "bert.onnx")
    result.refused(2, "bert.onnx is a model, and no engine")


def test_a_limit_without_a_measurement_is_told(cli, place):
    cli("check", "bert.onnx", "--update", "--bench", bench_report(place, 500.0))
    result = cli("check", "bert.onnx")
    assert result.code == 0
    assert "skipped bounds.latency_us: nothing was timed: give --bench REPORT" in result.out


def test_a_larger_engine(cli, place):
    engine = place / "bert.engine"
    engine.write_bytes(bytes(1000))
    assert cli("check", "bert.onnx", "--update", "--engine", engine).code == 0
    assert cli("check", "bert.onnx", "--engine", engine).code == 0
    engine.write_bytes(bytes(1051))
    result = cli("check", "bert.onnx", "--engine", engine)
    assert result.code == 1
    assert failures(result) == [
        f"FAILED bounds.engine_bytes: {engine} has 1051 bytes, the lock allows 1050"
    ]


def test_an_engine_is_timed_where_there_is_a_gpu(cli, place, monkeypatch):
    """The GPU and the clock are played; `opfuse bench` has its own tests."""
    cli("check", "bert.onnx", "--update", "--bench", bench_report(place, 500.0))
    (place / "bert.engine").write_bytes(b"engine")
    time = Latency(551.0, 551.0, 551.0, 1.0)
    measured = Measurement("e", "NVIDIA H100", {"x": (1, 8)}, {}, time, time, *[0] * 6, (), 1.0)
    monkeypatch.setattr("opfuse.engine.gpu.absent", lambda: "")
    monkeypatch.setattr("opfuse.checking._measured", lambda config, progress, engine: measured)
    result = cli("check", "bert.onnx", "--engine", "bert.engine")
    assert failures(result) == [
        "FAILED bounds.latency_us: a run takes 551.0 us, the lock allows 550 us"
    ]


def test_a_bundle_of_another_tensorrt(cli, place):
    pytest.importorskip("tensorrt_rtx")
    opfuse.build("bert.onnx", "bert.opfuse", backend="segmented", prove=False)
    assert cli("check", "bert.onnx", "--engine", "bert.opfuse").code == 0
    edited(place, lambda lock: lock["tensorrt"].update({"tensorrt-rtx": "1.6.0"}))
    result = cli("check", "bert.onnx", "--engine", "bert.opfuse")
    assert len(failures(result)) == 2
    assert "FAILED tensorrt.engine: bert.opfuse was built with tensorrt_rtx 1." in result.out
