"""The page: one well-formed file that needs nothing else, with every name of the model escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import onnx
import pytest

from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.pipeline import run
from tests.explanation.planted import CORE, PLANTED, QKV
from tests.small import model

VOID = {"meta", "link", "br", "path", "rect", "circle", "img", "hr"}
EVIL = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """Fails on tags that are not closed in order; collects texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def written(made: onnx.ModelProto, folder, **options) -> str:
    onnx.save(made, folder / "m.onnx")
    page = folder / "page.html"
    run(Config(folder / "m.onnx", reports=(page,), **options), "explain")
    return page.read_text()


def attention() -> onnx.ModelProto:
    return model(CORE, QKV, "T y", {}, "float", 18)


def test_it_is_well_formed_and_needs_nothing_else(tmp_path):
    text = written(attention(), tmp_path)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.tags.count("svg") == 2
    assert not {"script", "iframe", "object", "img"} & set(page.tags)
    assert page.links == ["data:,"]
    assert not re.search(r"url\(|@import|https?://", text)
    assert "FlashAttention" in page.texts


def test_names_of_the_model_are_escaped(tmp_path):
    made = attention()
    for node in made.graph.node:
        node.name = f"{EVIL}{node.op_type}"
    text = written(made, tmp_path)
    assert "<script" not in text
    assert "49" not in "".join(re.findall(r"\{\{.*?\}\}", text))
    titles = [data for data in Page(text).texts if data.endswith(f"{EVIL}Softmax")]
    assert titles


def test_near_misses_are_marked_and_listed(tmp_path):
    planted = PLANTED["softmax over the wrong axis"]
    made = model(planted.text, planted.inputs, planted.outputs, {}, "float", 18)
    text = written(made, tmp_path)
    assert len(re.findall(r'<g class="[a-z]+ miss"', text)) == 2
    said = " ".join(Page(text).texts)
    assert "works along axis 2, want the last of 4" in said
    assert "Try: work along the last axis" in said


def test_a_mark_is_the_number_in_the_list(tmp_path):
    """Two blocked blocks whose kinds sort the other way round than they stand in the model."""
    norm = PLANTED["a mean over the wrong axis"]
    core = PLANTED["softmax over the wrong axis"]
    text = norm.text.replace("y =", "z =").replace("root", "r") + core.text
    made = model(text, f"{norm.inputs}, {core.inputs}", "T z, T y", norm.weights, "float", 17)
    for node in made.graph.node:
        node.name = node.output[0]
    page = written(made, tmp_path)
    listed = re.findall(r"<li><b>(\w+)</b>, blocked by <code>(\S+)", page)
    assert listed == [("FlashAttention", "weights"), ("RmsNorm", "mean")]
    marks = set(re.findall(r"<title>\w+: (\w+) - blocks near-miss (\d)", page))
    assert marks == {("weights", "1"), ("mean", "2")}


def test_equal_models_give_equal_pages(tmp_path):
    first = written(attention(), tmp_path)
    assert written(attention(), tmp_path) == first


def test_the_gpu_and_the_shapes_are_told(tmp_path):
    shapes = dict.fromkeys("qkv", (2, 4, 64, 8))
    text = written(attention(), tmp_path, gpu="L4", opt_shapes=shapes)
    assert "L4 (0.3 TB/s, 121 TFLOP/s fp16 dense)" in text
    assert "q:2x4x64x8" in text.replace("<code>", "")
    assert "NVIDIA L4 datasheet" in text


def test_an_unknown_gpu_is_refused(tmp_path):
    with pytest.raises(InputError, match="gpu 'H1' is not known"):
        Config(tmp_path / "m.onnx", gpu="H1")
