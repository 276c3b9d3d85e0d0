"""Every format is read back by a reader of its own, and names of a model cannot break out of it.

sarif-schema-2.1.0.json.gz is the schema as OASIS publishes it (github.com/oasis-tcs/sarif-spec,
Copyright OASIS Open, under its IPR policy), compressed and without white space.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import jsonschema
import pytest
from junitparser import Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt

from models import tiny
from opfuse import formats
from opfuse.formats import finding, github
from opfuse.stages import report as stage_report
from tests.formats.reports import CHECK, EVIL, LOCK, REPORT

SCHEMA = json.loads(
    gzip.decompress((Path(__file__).parent / "sarif-schema-2.1.0.json.gz").read_bytes())
)


def of_check(suffix: str, check=CHECK) -> str:
    return formats.of_check(check, suffix, LOCK, "opfuse.lock: 1 of 3 expectations failed")


def sarif_of(text: str):
    log = json.loads(text)
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    return log["runs"][0]


def test_the_schema_refuses_what_is_wrong():
    log = json.loads(formats.of_report(REPORT, ".sarif"))
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(log)


def test_sarif_of_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = sarif_of(formats.of_report(REPORT, ".sarif"))
    found = [(r["ruleId"], r["level"]) for r in run["results"]]
    assert found == [
        ("near-miss", "warning"),
        ("undone-fusion", "error"),
        ("undone-fusion", "error"),
        ("kept-in-fp32", "note"),
    ]
    first = run["results"][0]
    place = first["locations"][0]
    assert place["physicalLocation"]["artifactLocation"] == {
        "uri": "dir%20with%20space/m%C3%B6del.onnx",
        "uriBaseId": "%SRCROOT%",
    }
    assert "\x1b" not in first["message"]["text"]
    assert first["message"]["text"].endswith("; try: export it again")
    assert place["logicalLocations"][0]["fullyQualifiedName"].startswith("a|b`<b>")
    assert len({r["partialFingerprints"]["opfuse/v1"] for r in run["results"]}) == 4


def test_a_model_elsewhere_has_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {**REPORT["model"], "path": "/models/x y.onnx"}
    run = sarif_of(formats.of_report({**REPORT, "model": model}, ".sarif"))
    where = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert where == {"uri": "file:///models/x%20y.onnx"}


def test_sarif_of_a_check_points_into_the_lock():
    run = sarif_of(of_check(".sarif"))
    lock, *rest = run["results"]
    assert lock["ruleId"] == "lock"
    assert lock["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "opfuse.lock"
    line = lock["locations"][0]["physicalLocation"]["region"]["startLine"]
    assert LOCK.splitlines()[line - 1].strip() == '"FlashAttention": {'
    assert [item["ruleId"] for item in rest] == ["near-miss", "kept-in-fp32"]


def test_annotations_of_a_runner():
    findings = list(finding.of_check(CHECK, LOCK))
    error, warning, note = github.annotated(findings)
    assert error.startswith(
        "::error file=opfuse.lock,line=8,title=opfuse lock::FlashAttention 32 -> 31: a|b"
    )
    assert "%250A::error" in error
    assert "\n" not in error
    assert warning.startswith("::warning file=mödel.onnx,line=1,title=opfuse near-miss::")
    assert note.startswith("::notice file=")
    assert len(list(github.annotated(findings * 20))) == 30


def junit_of(text: str) -> JUnitXml:
    return JUnitXml.fromroot(JUnitXml.fromstring(text.encode())._elem)


def cases_of(text: str):
    xml = junit_of(text)
    found = {case.name: case for suite in xml for case in suite}
    assert xml.tests == len([case for suite in xml for case in suite])
    return xml, found


def test_junit_of_a_check():
    xml, found = cases_of(of_check(".xml"))
    assert (xml.tests, xml.failures, xml.skipped, xml.errors) == (4, 1, 1, 0)
    assert [suite.name for suite in xml] == ["fusions", "bounds", "outputs"]
    (failure,) = found["FlashAttention"].result
    assert isinstance(failure, Failure)
    assert failure.message.startswith("FlashAttention 32 -> 31: a|b`<b>&amp;\\x1b[31m\\x00]]>")
    assert failure.message.endswith("; try: export it again")
    assert found["FlashAttention"].classname == "mödel.onnx.fusions"
    (skipped,) = found["latency_us"].result
    assert isinstance(skipped, Skipped)
    assert found["AddRmsNorm"].result == []


def test_junit_of_a_report():
    xml, found = cases_of(formats.of_report(REPORT, ".xml"))
    assert [suite.name for suite in xml] == ["fusions", "proof", "precision", "engine"]
    assert xml.time == pytest.approx(1.5)
    assert found["FlashAttention"].system_out == "1 fused"
    assert isinstance(found["Rope"].result[0], Failure)
    assert isinstance(found["whole model"].result[0], Skipped)
    assert found["fp16"].system_out == "products: 4 fp16, 1 fp32"


def tables_of(text: str) -> list[list[list[str]]]:
    """The cells of every table as they are shown."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level >= 4:
            assert {part.type for part in token.children} <= {"text", "text_special"}, token.content
            tables[-1][-1].append("".join(part.content for part in token.children))
    return tables


def test_markdown_of_a_check():
    text = of_check(".md")
    assert text.startswith("### ❌ opfuse check: mödel.onnx\n")
    failed, changed, nearly, every = tables_of(text)
    shown = EVIL.replace("\x1b", "\\x1b").replace("\x00", "\\x00").replace("\n", "\\x0a")
    assert failed[1] == [
        "fusions.FlashAttention", f"FlashAttention 32 -> 31: {shown}", "export it again",
    ]  # fmt: skip
    assert changed[1] == ["fusions.FlashAttention.fused", "32", "none"]
    assert nearly[1] == ["FlashAttention", shown, "is odd", "mend it"]
    assert [row[1] for row in every[1:]] == ["passed", "failed", "skipped", "passed"]
    assert "<b>" not in MarkdownIt("gfm-like", {"linkify": False}).render(text)


def test_markdown_of_a_report():
    fusions, nearly, kept, engine = tables_of(formats.of_report(REPORT, ".md"))
    assert fusions == [["fusion", "fused", "nearly"], ["AddRmsNorm", "2", ""],
                       ["FlashAttention", "1", "1"]]  # fmt: skip
    assert nearly[1][0] == "FlashAttention"
    assert kept[1] == ["head", "MatMul", "a weight of 7e4"]
    assert ["plugin layers", "AddRmsNorm 2"] in engine


def test_many_near_misses_are_cut():
    miss = {"kind": "K", "node": "n", "reason": "r", "advice": ""}
    text = of_check(".md", {**CHECK, "nearly": [miss] * 70})
    assert len(tables_of(text)[2]) == 51
    assert "20 more: see opfuse explain." in text


def test_the_page_of_a_check():
    page = of_check(".html")
    assert page.startswith("<!doctype html>")
    assert '<tr class="failed">' in page
    assert "<b>" not in page
    assert "http" not in page


def test_a_check_with_nothing_to_tell():
    empty = {**CHECK, "expectations": [], "changes": [], "nearly": [], "kept": [], "passed": True}
    assert sarif_of(of_check(".sarif", empty))["results"] == []
    assert junit_of(of_check(".xml", empty)).tests == 0
    assert of_check(".md", empty).startswith("### ✅")
    assert "Expectations" not in of_check(".html", empty)


@pytest.mark.parametrize("suffix", stage_report.SUFFIXES)
@pytest.mark.parametrize("command", ["explain", "fuse"])
def test_every_command_writes_every_format(tmp_path, command, suffix):
    import opfuse

    model = tiny.bert(layers=1).write(tmp_path / "m.onnx")
    report = tmp_path / f"report{suffix}"
    if command == "explain":
        opfuse.explain(model, reports=(report,))
    else:
        opfuse.fuse(model, tmp_path / "f.onnx", prove=False, reports=(report,))
    assert "FlashAttention" in report.read_text() or suffix == ".sarif"


def test_readers_find_utf8(tmp_path):
    path = tmp_path / "r.xml"
    path.write_bytes(of_check(".xml").encode())
    assert JUnitXml.fromfile(io.BytesIO(path.read_bytes())).tests == 4
