"""Completion scripts: the shells take them, and they complete what the grammar has."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from opfuse.arguments import parser
from opfuse.arguments.commands import SHELLS

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p opfuse | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(cli, tmp_path):
    def write(shell):
        result = cli("completion", shell)
        assert (result.code, result.err) == (0, "")
        path = tmp_path / f"opfuse.{shell}"
        path.write_text(result.out)
        return path

    return write


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script(script, shell):
    text = script(shell).read_text()
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert [name for name in commands if name not in text] == []
    flags = {flag for command in commands.values() for a in command._actions
             if a.help != "==SUPPRESS==" for flag in a.option_strings}  # fmt: skip
    assert [flag for flag in flags if flag.lstrip("-") not in text] == []


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["bu"], {"build"}),
        (["build", "--backend", "tens"], {"tensorrt", "tensorrt-rtx"}),
        (["fuse", "--prec"], {"--precision"}),
        (["fuse", "--best"], set()),
        (["fuse", "mod"], {"model.onnx"}),
        (["explain", "m.onnx", "--report", "mod"], {"model.onnx"}),
        (["completion", "f"], {"fish"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(script, tmp_path, words, offers):
    path = script("bash")
    (tmp_path / "model.onnx").touch()
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", path, "opfuse", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.stderr == ""
    assert {line.strip() for line in done.stdout.splitlines() if line} == offers


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_the_shell_takes_its_script(script, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"not run: no {shell} here")
    path = script(shell)
    command = [shell, "-c", f"source {path}"] if shell == "tcsh" else [shell, "-n", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell(cli):
    cli("completion", "cmd").refused(2, "'cmd'")
