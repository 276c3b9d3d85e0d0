"""The report: a stable schema for machines, whole and harmless text for people."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace

import pytest

import opfuse
from models import tiny
from opfuse.errors import InputError
from opfuse.graph.match import NearMiss
from opfuse.stages.report import Report, plain
from opfuse.stages.report_text import as_text, clean

MODEL = {
    "path": "m.onnx", "opset": 18, "nodes": 3, "fused_nodes": 1, "output": None, "notes": ["odd"],
}  # fmt: skip
MISSES = (
    NearMiss("Rope", "b", "node b", "half of it is missing"),
    NearMiss("Rope", "a", "node [red]a\x1b[2J", "rank\nis 3"),
)


@pytest.fixture
def report():
    return Report(MODEL, (), MISSES, {"Rope": 1, "Gelu": 0}, timings={"load": 0.123456})


def test_the_schema(report):
    facts = json.loads(report.as_json())
    assert list(facts) == [
        "schema", "model", "fusions", "proof", "lowering", "engine", "timings_s",
    ]  # fmt: skip
    assert facts["schema"] == 1
    assert facts["fusions"]["Gelu"] == {"fused": 0, "nearly": []}
    assert facts["fusions"]["Rope"]["fused"] == 1
    assert [item["node"] for item in facts["fusions"]["Rope"]["nearly"]] == [
        "node [red]a\x1b[2J", "node b",
    ]  # fmt: skip
    assert facts["timings_s"] == {"load": 0.1235}


def test_the_order_of_the_findings_does_not_matter(report):
    turned = Report(MODEL, (), MISSES[::-1], {"Gelu": 0, "Rope": 1}, timings={"load": 0.123456})
    assert turned.as_json() == report.as_json()


def test_names_cannot_write_to_the_terminal(report):
    text = as_text(report)
    assert "\x1b" not in text
    assert "[red]a\\x1b" in text
    assert "rank\\x0ais 3" in text
    assert "note: odd" in text


def test_long_lines_are_not_cut(report):
    note = "a note of many words " * 20
    text = as_text(replace(report, model={**MODEL, "notes": [note]}))
    assert note.strip() in text


def test_clean_escapes_markup_and_controls():
    assert clean("[bold]a\x00\u202eb") == "\\[bold]a\\x00\\x202eb"


def test_files_by_suffix(report, tmp_path):
    report.write(tmp_path / "r.json")
    report.write(tmp_path / "r.txt")
    assert (tmp_path / "r.json").read_text() == report.as_json()
    assert (tmp_path / "r.txt").read_text() == as_text(report)
    with pytest.raises(InputError, match="yaml"):
        report.write(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_nan(value):
    assert plain(value) == str(value)


def test_of_a_real_model(tmp_path):
    model = tiny.llama(layers=1).write(tmp_path / "m.onnx")
    report = opfuse.fuse(model, tmp_path / "f.onnx", reports=[tmp_path / "r.json"])
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts == report.as_dict()
    assert facts["model"]["inputs"][0] == {
        "name": "input_ids", "dtype": "INT64", "shape": ["batch", "seq"],
    }  # fmt: skip
    assert facts["fusions"]["FlashAttention"] == {"fused": 1, "nearly": []}
    assert (facts["proof"]["failed"], facts["engine"], facts["lowering"]) == (0, None, [])
    assert set(facts["timings_s"]) == {"load", "normalise", "fuse", "prove", "save"}


def test_explain_lists_every_candidate(tmp_path):
    from rich.console import Console

    from opfuse.stages.report_text import render

    model = tiny.llama(layers=2).write(tmp_path / "m.onnx")
    report = opfuse.explain(model)
    listed = Counter(match.kind for match in report.matches)
    assert listed == {kind: count for kind, count in report.counts.items() if count}
    console = Console(width=200, file=io.StringIO())
    console.print(render(report, every_candidate=True))
    text = console.file.getvalue()
    assert text.count("FlashAttention") >= 3  # once in the counts, once for each layer
