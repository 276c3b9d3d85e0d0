"""Choosing a backend: the first usable one, the reason, and what is missing."""

from __future__ import annotations

import pytest

from opfuse.engine import gpu, select, wheel
from opfuse.engine.tensorrt import TensorRt
from opfuse.errors import MissingComponent


class Fake:
    def __init__(self, name, missing=None):
        self.name = name
        self.missing = missing

    def lacks(self):
        return self.missing


@pytest.fixture
def backends(monkeypatch):
    def use(*fakes):
        monkeypatch.setattr(select, "_BACKENDS", fakes)

    return use


def test_auto_takes_the_first_usable_and_says_what_it_passed(backends):
    backends(Fake("tensorrt", ("no GPU", "get one")), Fake("tensorrt-rtx"))
    choice = select.select("auto")
    assert choice.backend.name == "tensorrt-rtx"
    assert "not tensorrt: no GPU" in choice.why


def test_auto_asks_enterprise_tensorrt_first():
    assert [backend.name for backend in select._BACKENDS] == [
        "tensorrt",
        "tensorrt-rtx",
        "segmented",
    ]


def test_auto_without_any_names_all_that_is_missing(backends):
    backends(Fake("tensorrt", ("no GPU", "get one")), Fake("tensorrt-rtx", ("no wheel", "pip")))
    with pytest.raises(MissingComponent, match=r"tensorrt: no GPU; tensorrt-rtx: no wheel"):
        select.select("auto")


def test_a_named_backend_that_is_not_usable_is_missing(backends):
    backends(Fake("tensorrt", ("no GPU", "get one")))
    with pytest.raises(MissingComponent, match="no GPU") as caught:
        select.select("tensorrt")
    assert caught.value.fix == "get one"


def test_an_old_tensorrt_rtx_still_builds_segments(monkeypatch):
    monkeypatch.setattr(gpu, "absent", lambda: "no NVIDIA driver")
    monkeypatch.setattr(wheel, "find_spec", lambda name: name if "rtx" in name else None)
    monkeypatch.setattr(wheel, "installed", lambda _: "1.4.0.76")
    choice = select.select("auto")
    assert choice.backend.name == "segmented"
    assert "not tensorrt-rtx: TensorRT for RTX 1.4.0.76 is installed" in choice.why


def test_enterprise_tensorrt_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(wheel, "lacks", lambda *_: None)
    monkeypatch.setattr(gpu, "absent", lambda: "no NVIDIA driver")
    what, fix = TensorRt().lacks()
    assert "no NVIDIA driver" in what
    assert "--backend tensorrt-rtx" in fix


@pytest.mark.parametrize(
    ("version", "missing"),
    [("10.12.9", True), ("10.13.0.35", False), ("9.99", True), ("11.4.0", False), ("", False)],
)
def test_wheels_older_than_supported_are_named(monkeypatch, version, missing):
    monkeypatch.setattr(wheel, "installed", lambda _: version)
    answer = wheel.lacks("TensorRT", "json", ("x",), (10, 13), "install it")
    assert (answer is not None) == missing
    if answer:
        assert version in answer[0]
        assert "10.13" in answer[0]


def test_a_module_that_is_not_there_is_not_installed():
    answer = wheel.lacks("TensorRT", "no_such_module_here", ("x",), (10, 13), "install it")
    assert answer == ("TensorRT is not installed", "install it")
