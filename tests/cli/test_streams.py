"""Standard streams that are closed, full, or no longer read: the work is done all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest

from models import tiny


@pytest.fixture
def shell(environment, tmp_path):
    """Run a line of bash in which $opfuse is the command; stdout and stderr as the line sends them.

    The exit code is that of the first command that fails.
    """

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            capture_output=True,
            text=True,
            env={**environment, "opfuse": f"{sys.executable} -m opfuse"},
            cwd=tmp_path,
            check=False,
        )

    return run


FUSE = "$opfuse fuse llama.onnx -o fused.onnx --no-prove"


@pytest.mark.parametrize(
    "line",
    [
        f"{FUSE} >&-",
        f"{FUSE} --json >&-",
        f"{FUSE} 2>&-",
        f"{FUSE} <&- >&- 2>&-",
        f"{FUSE} -v 2>/dev/full",
        f"{FUSE} -v 2> >(true)",
        f"{FUSE} | true",
        f"{FUSE} --json | true",
    ],
)
def test_nobody_has_to_read_what_is_said(shell, llama, tmp_path, line):
    done = shell(line)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "fused.onnx").stat().st_size > 0


def test_nothing_else_stands_beside_the_json(shell, tmp_path):
    """ONNX GraphSurgeon remarks on stdout that NumPy has no bfloat16."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>'
        "a (bfloat16[2, 8] x) => (bfloat16[2, 8] y) { h = Neg(x) y = Add(h, h) }"
    )
    onnx.save(model, tmp_path / "bf16.onnx")
    done = shell("$opfuse fuse bf16.onnx -o fused.onnx --json")
    assert json.loads(done.stdout)["model"]["path"] == "bf16.onnx"
    assert shell("$opfuse fuse bf16.onnx -o fused.onnx -q").stdout == ""


def test_what_is_printed_never_lands_in_the_output(shell, llama, tmp_path):
    """With stdout closed the next file to be opened would be number 1."""
    shell(FUSE)
    expected = (tmp_path / "fused.onnx").read_bytes()
    (tmp_path / "fused.onnx").unlink()
    assert shell(f"{FUSE} -v <&- >&- 2>&-").returncode == 0
    assert (tmp_path / "fused.onnx").read_bytes() == expected


def test_a_reader_that_left_does_not_hide_the_verdict(shell, llama, tmp_path):
    tiny.llama(layers=1, seed=9).write(tmp_path / "other.onnx")
    assert shell("$opfuse verify llama.onnx other.onnx | true").returncode == 1


@pytest.mark.parametrize("option", ["", "--json"])
def test_stdout_on_a_full_disk(shell, llama, option):
    done = shell(f"$opfuse explain llama.onnx {option} > /dev/full")
    assert done.returncode == 2, done.stderr
    assert "cannot write to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["/dev/stdout", "out.txt"])
def test_the_output_does_not_replace_where_stdout_goes(shell, llama, tmp_path, name):
    done = shell(f"$opfuse fuse llama.onnx -o {name} --no-prove > out.txt")
    assert done.returncode == 2
    assert f"{name} is the file that stdout goes to" in done.stderr
    assert os.path.islink("/dev/stdout")


def test_a_working_directory_that_is_gone(shell, llama):
    done = shell("mkdir gone && cd gone && rmdir ../gone && $opfuse explain ../llama.onnx")
    assert done.returncode == 2
    assert "the working directory is gone" in done.stderr


@pytest.mark.parametrize(
    "line",
    ["explain no.onnx", "verify llama.onnx no.onnx", "plugins --plugins no.so", "fuse llama.onnx",
     "build llama.onnx -o e.engine --plugins no.so", "fuse no.onnx -o f.onnx"],
)  # fmt: skip
def test_errors_leave_stdout_to_the_json(shell, llama, line):
    done = shell(f"$opfuse {line} --json")
    assert done.returncode in (2, 3)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "line",
    ["explain llama.onnx -v", "verify llama.onnx llama.onnx", "plugins",
     "fuse llama.onnx -o f.onnx -v"],
)  # fmt: skip
def test_json_is_all_that_stdout_has(shell, llama, line):
    done = shell(f"$opfuse {line} --json")
    if done.returncode == 3:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_names_that_are_no_text(shell, llama, tmp_path):
    """A file name is bytes; in reports and messages those that are no UTF-8 are written out."""
    name = os.fsdecode(b"m\xff.onnx")
    llama.rename(tmp_path / name)
    reports = "--report r.json --report r.txt --report r.html"
    done = shell(f"$opfuse fuse $'m\\xff.onnx' -o $'f\\xff.onnx' --no-prove {reports}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / os.fsdecode(b"f\xff.onnx")).exists()
    assert json.loads((tmp_path / "r.json").read_text())["model"]["path"] == name
    assert "m\\xdcff.onnx" in (tmp_path / "r.txt").read_text()
    assert "m\\udcff.onnx" in (tmp_path / "r.html").read_text()


def test_a_locale_that_is_not_utf8(spawn, environment, llama, tmp_path):
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    llama.rename(tmp_path / "mü.onnx")
    result = spawn("fuse", "mü.onnx", "-o", "f ü.onnx", "--no-prove", cwd=tmp_path)
    assert result.code == 0, result.err
    assert (tmp_path / "f ü.onnx").exists()
