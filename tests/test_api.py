"""The library: the commands as functions, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import opfuse
from models import tiny

SOURCE = Path(opfuse.__file__).parent.parent


@pytest.fixture
def llama(tmp_path):
    return tiny.llama(layers=1).write(tmp_path / "llama.onnx")


def test_everything_public_is_there():
    assert {name for name in opfuse.__all__ if not hasattr(opfuse, name)} == set()
    with pytest.raises(AttributeError, match="no_such"):
        _ = opfuse.no_such


def test_no_module_takes_the_name_of_a_function():
    """Importing opfuse.fuse.x would put the module where the function was."""
    functions = {name for name, home in opfuse._HOMES.items() if home == "opfuse.api"}
    modules = {path.stem for path in Path(opfuse.__file__).parent.iterdir()}
    assert functions & modules == set()


def test_importing_is_free():
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import opfuse; "
        "print('onnx' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


def test_fuse_explain_and_verify(llama, tmp_path):
    fused = tmp_path / "fused.onnx"
    report = opfuse.fuse(str(llama), fused, seed=3)
    assert report.counts["FlashAttention"] == 1
    assert opfuse.explain(llama).counts == report.counts
    assert opfuse.verify(llama, fused).passed
    other = tiny.llama(layers=1, seed=9).write(tmp_path / "other.onnx")
    assert not opfuse.verify(llama, other).passed


def test_unknown_options_are_refused(llama, tmp_path):
    with pytest.raises(opfuse.InputError, match="presicion"):
        opfuse.fuse(llama, tmp_path / "f.onnx", presicion="fp16")


@pytest.mark.parametrize("shapes", [None, "x:1", {"x": None}, {"x": "1x8"}, {"x": (1.5,)},
                                    {"x": (-1, 8)}, {"x": (1, 2**31)}])  # fmt: skip
def test_shapes_that_are_none_are_refused(llama, shapes):
    with pytest.raises(opfuse.InputError, match="max_shapes"):
        opfuse.explain(llama, max_shapes=shapes)


def test_verify_ends_with_1_where_numbers_differ(llama, tmp_path, capsys):
    from opfuse.cli import main

    other = tiny.llama(layers=1, seed=9).write(tmp_path / "other.onnx")
    assert main(["verify", str(llama), str(llama)]) == 0
    assert main(["verify", str(llama), str(other)]) == 1
    assert "different" in capsys.readouterr().out
