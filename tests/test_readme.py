"""What README.md says is so: its code runs, its commands, options, and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import opfuse
from opfuse.arguments import parser
from opfuse.engine import gpu

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_example(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx")
    example, _ = blocks("python")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    expected = re.search(r"# (\{.*\})", example).group(1)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == expected
    assert (tmp_path / "llama.engine").stat().st_size > 0


def test_the_example_that_runs_a_bundle(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    _, example = blocks("python")
    monkeypatch.chdir(tmp_path)
    model = ROOT / "models" / "llama.onnx"
    opfuse.build(model, "llama.opfuse", backend="segmented", prove=False)
    ids = np.ones((1, 8), np.int64)
    names = {"ids": ids, "mask": ids, "positions": np.arange(8)[None]}
    if gpu.absent():
        with pytest.raises(opfuse.MissingComponent, match="engines run on a GPU"):
            exec(compile(example, "README.md", "exec"), names)
    else:
        exec(compile(example, "README.md", "exec"), names)
        assert np.isfinite(names["outputs"]["logits"]).all()


def test_every_command_is_listed_and_exists():
    listed = set(re.findall(r"^opfuse (\w+) ", README, re.MULTILINE))
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert listed == set(commands)


def test_every_option_of_the_table_exists():
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    known = {flag for command in commands.values() for flag in command._option_string_actions}
    rows = re.findall(r"^\| (`--.*?) \|", README, re.MULTILINE)
    named = {flag for row in rows for flag in re.findall(r"--[\w-]+", row)}
    assert named
    assert named <= known


def test_the_table_of_exit_codes_is_that_of_the_help():
    table = set(re.findall(r"^\| (\d+)(?:, \d+)? \| ", README, re.MULTILINE))
    assert table == set(re.findall(r"^  (\d+) ", parser().format_help(), re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_target_that_is_named_exists(name):
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", text, re.MULTILINE))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert {first or second for first, second in named} <= set(targets)
