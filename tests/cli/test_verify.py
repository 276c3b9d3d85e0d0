"""`opfuse verify`: the verdict as exit code, on the terminal, and in files."""

from __future__ import annotations

import json

import pytest

from models import tiny
from opfuse.engine import gpu


@pytest.fixture
def other(tmp_path):
    """A model of the same inputs that computes something else."""
    return tiny.llama(layers=1, seed=9).write(tmp_path / "other.onnx")


def test_equal_and_different(cli, llama, other):
    assert cli("verify", llama, llama).code == 0
    result = cli("verify", llama, other)
    assert result.code == 1
    assert "different" in result.out
    assert cli("verify", llama, other, "-q").out == result.out
    assert cli("verify", llama, llama, "-q").out == ""


def test_json(cli, llama, other):
    result = cli("verify", llama, other, "--json")
    found = json.loads(result.out)
    assert list(found)[:3] == ["schema", "passed", "max_rel_err"]
    assert (found["schema"], found["passed"]) == (1, False)
    assert found["max_rel_err"] > found["tolerance"]
    assert found["outputs"]["logits"]["max_rel"] == found["max_rel_err"]
    assert json.loads(cli("verify", llama, llama, "--json").out)["passed"] is True


def test_reports(cli, llama, other, tmp_path):
    files = [tmp_path / "r.json", tmp_path / "r.txt"]
    result = cli("verify", llama, other, "--json", "--report", files[0], "--report", files[1])
    assert result.code == 1
    assert files[0].read_text() == result.out
    assert "different within a relative error of" in files[1].read_text()


def test_a_comparison_has_no_page(cli, llama, tmp_path):
    cli("verify", llama, llama, "--report", tmp_path / "r.html").refused(2, ".html", ".json, .txt")


def test_a_wider_tolerance_passes(cli, llama, other):
    assert cli("verify", llama, other, "--rtol", "1e6").code == 0


def test_an_engine_needs_a_gpu(cli, llama, tmp_path):
    if not gpu.absent():
        pytest.skip("there is a GPU")
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"ftrt")
    cli("verify", llama, engine).refused(3, str(engine), "runs on a GPU", "fused .onnx")
