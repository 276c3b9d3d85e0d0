"""opfuse explain, as people and scripts see it."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest

from models import tiny
from tests.explanation.planted import PLANTED
from tests.small import model

NO_JINJA = (
    "import sys; from opfuse.cli import main; code = main(sys.argv[1:]); "
    "loaded = {'jinja2', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules); "
    "assert not loaded, loaded; sys.exit(code)"
)


@pytest.fixture
def llama(tmp_path):
    return tiny.llama(layers=2).write(tmp_path / "llama.onnx")


@pytest.fixture
def blocked(tmp_path):
    planted = PLANTED["probabilities read twice"]
    made = model(planted.text, planted.inputs, planted.outputs, {}, "float", 18)
    for node in made.graph.node:
        node.name = f"node_of_{node.output[0]}"
    onnx.save(made, tmp_path / "blocked.onnx")
    return tmp_path / "blocked.onnx"


def test_the_text_has_a_line_for_each_anchor(cli, llama):
    result = cli("explain", llama)
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if "fused as FlashAttention at" in line]
    assert len(lines) == 2
    assert "savings at most, on H100" in result.out


def test_a_near_miss_reads_as_one_line(cli, blocked):
    result = cli("explain", blocked)
    (line,) = [line for line in result.out.splitlines() if "Softmax node_of_weights" in line]
    assert "nearly FlashAttention, blocked by node_of_seen (Neg): " in line
    assert "is also read by node_of_seen (Neg); try: give the other reader its own copy" in line


def test_the_json_has_the_same(cli, blocked):
    report = json.loads(cli("explain", blocked, "--json", "--gpu", "B200").out)
    (anchor,) = report["explanation"]["anchors"]
    assert anchor["status"] == "nearly"
    assert anchor["blocker"] == "node_of_seen (Neg)"
    (miss,) = report["fusions"]["FlashAttention"]["nearly"]
    assert miss["advice"] == anchor["advice"]
    assert report["explanation"]["gpu"]["name"] == "B200"
    assert report["explanation"]["total"]["launches"] == 1  # the scale goes into the softmax


def test_savings_follow_the_shapes(cli, llama):
    def saved(length: int) -> int:
        shapes = f"input_ids:1x{length}"
        report = json.loads(cli("explain", llama, "--json", "--optShapes", shapes).out)
        return report["explanation"]["total"]["bytes"]

    assert saved(256) > 2 * saved(128)


def test_fuse_writes_the_page_too(cli, llama, tmp_path):
    page = tmp_path / "page.html"
    result = cli("fuse", llama, "-o", tmp_path / "f.onnx", "--no-prove", "--report", page)
    assert result.code == 0, result.err
    assert page.read_text().startswith("<!doctype html>")


def test_an_unknown_gpu_is_refused(cli, llama):
    cli("explain", llama, "--gpu", "H1").refused(2, "H1", "RTX5090")


def test_nothing_heavy_is_imported_without_a_page(environment, llama):
    done = subprocess.run(
        [sys.executable, "-c", NO_JINJA, "explain", llama, "-q"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
