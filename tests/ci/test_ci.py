"""The action, the GitLab job, and the pre-commit hook, each run as its runner does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml

import opfuse
from tests.gate import planted

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(sys.modules["opfuse"].__file__).parent.parent


@dataclass(frozen=True)
class Run:
    code: int
    log: str
    outputs: Mapping[str, str]
    summary: str


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Path:
    """A checkout with a model in a folder of its own, and its lock."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "models").mkdir()
    model = planted.save(folder / "models" / "my bert.onnx")
    opfuse.check(model, folder / "opfuse.lock", update=True)
    return folder


@pytest.fixture
def checkout(locked, tmp_path) -> Path:
    folder = tmp_path / "checkout"
    shutil.copytree(locked, folder)
    return folder


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of a machine with this opfuse on the PATH, and a pip that notes what it should install."""
    tools = tmp_path / "tools"
    tools.mkdir()
    command = tools / "opfuse"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m opfuse "$@"\n')
    command.chmod(0o755)
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/python3.log"\n')
    python.chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(SOURCE)}


def bash(script: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a script as GitHub's runner does for `shell: bash`."""
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def value_of(text: str, inputs: Mapping[str, str]) -> str:
    """What an expression of the action stands for; it has no others than these."""

    def one(match: re.Match[str]) -> str:
        for term in match[1].split("||"):
            name = term.strip()
            found = str(ROOT) if name == "github.action_path" else inputs[name.split(".")[1]]
            if found:
                return found
        return ""

    return re.sub(r"\$\{\{(.*?)\}\}", one, text)


def act(folder: Path, environment: Mapping[str, str], **given: str) -> Run:
    """The steps of action.yml with these inputs."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {name: str(item.get("default", "")) for name, item in action["inputs"].items()}
    inputs |= given
    output, summary = folder.parent / "output", folder.parent / "summary"
    for file in (output, summary):
        file.write_text("")
    runner = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    log, code = "", 0
    for step in action["runs"]["steps"]:
        if "if" in step and inputs["install"] != "true":
            assert step["if"] == "inputs.install == 'true'"
            continue
        assert "${{" not in step["run"]
        own = {name: value_of(text, inputs) for name, text in step.get("env", {}).items()}
        code, told = bash(step["run"], folder, {**environment, **runner, **own})
        log += told
        if code:
            break
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return Run(code, log, outputs, summary.read_text())


def test_the_action_passes(checkout, environment, tmp_path):
    run = act(checkout, environment, model="models/my bert.onnx")
    assert run.code == 0, run.log
    assert run.outputs["exit-code"] == "0"
    assert (tmp_path / "python3.log").read_text().strip() == f"-m pip install --quiet -- {ROOT}"
    assert run.summary.startswith("### ✅ opfuse check: my bert.onnx")
    assert JUnitXml.fromfile(str(checkout / run.outputs["junit"])).failures == 0
    assert (checkout / run.outputs["sarif"]).is_file()
    assert "::error" not in run.log


def test_the_action_fails_with_annotations_and_a_summary(checkout, environment):
    planted.save(checkout / "models" / "my bert.onnx", planted.axis)
    run = act(checkout, environment, model="models/my bert.onnx", install="false")
    assert run.code == 1
    assert run.outputs["exit-code"] == "1"
    assert "| fusions.FlashAttention | FlashAttention 3 -\\> 2: " in run.summary
    (error,) = [line for line in run.log.splitlines() if "FlashAttention 3 -> 2" in line
                and line.startswith("::error file=opfuse.lock,line=")]  # fmt: skip
    number = int(re.search(r"line=(\d+)", error)[1])
    assert "FlashAttention" in (checkout / "opfuse.lock").read_text().splitlines()[number - 1]
    assert "::warning file=models/my bert.onnx,line=1,title=opfuse near-miss::" in run.log


def test_the_action_without_a_lock(checkout, environment):
    (checkout / "opfuse-reports").mkdir()
    (checkout / "opfuse-reports" / "opfuse.md").write_text("of an earlier run")
    run = act(checkout, environment, model="models/my bert.onnx", lock="no.lock", install="false")
    assert run.code == 2
    assert run.outputs["exit-code"] == "2"
    assert "there is no lock no.lock" in run.log
    assert run.summary == ""


def test_inputs_of_the_action_are_no_code(checkout, environment):
    evil = "models/my bert.onnx; touch stolen; $(touch stolen) `touch stolen`"
    run = act(checkout, environment, model=evil, options="--rtol $(touch stolen)", install="false")
    assert run.code == 2
    assert not (checkout / "stolen").exists()


def test_more_inputs_of_the_action(checkout, environment):
    (checkout / "my.engine").write_bytes(b"engine")
    run = act(
        checkout, environment, model="models/my bert.onnx", engine="my.engine",
        options="--seed 0  --precision keep", reports="out/reports", package="opfuse==9.9",
    )  # fmt: skip
    assert run.code == 0, run.log
    assert run.outputs["sarif"] == "out/reports/opfuse.sarif"
    assert "install --quiet -- opfuse==9.9" in (checkout.parent / "python3.log").read_text()


def test_options_of_the_action_have_lines_and_quotes(checkout, environment):
    given = {"model": "models/my bert.onnx", "install": "false"}
    options = "--seed 0\n--report 'my report.txt' --report \"a;b`c`.txt\"\n"
    run = act(checkout, environment, options=options, **given)
    assert run.code == 0, run.log
    assert (checkout / "my report.txt").is_file()
    assert (checkout / "a;b`c`.txt").is_file()
    assert act(checkout, environment, options="--seed\n1", **given).code == 1
    assert act(checkout, environment, options="--report 'my", **given).code != 0
    run = act(checkout, environment, reports="out\nexit-code=0", **given)
    assert (run.code, run.outputs) == (2, {})


def gitlab(folder: Path, environment: Mapping[str, str], **given: str) -> tuple[int, str]:
    """The lines of the job, one shell for all of them as in GitLab's runner."""
    job = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".opfuse-check"]
    lines = "\n".join([*job["before_script"], *job["script"]])
    code, log = bash(lines, folder, {**environment, **job["variables"], **given})
    for path in (job["artifacts"]["reports"]["junit"], *job["artifacts"]["paths"]):
        assert (folder / path).exists() or code == 2
    return code, log


def test_the_job_of_gitlab(checkout, environment, tmp_path):
    model = {"OPFUSE_MODEL": "models/my bert.onnx"}
    code, log = gitlab(checkout, environment, **model)
    assert code == 0, log
    assert (tmp_path / "python3.log").read_text().strip() == "-m pip install --quiet opfuse"
    planted.save(checkout / "models" / "my bert.onnx", planted.epsilon)
    code, log = gitlab(checkout, environment, **model, OPFUSE_OPTIONS="--seed 0 --time-limit 99")
    assert code == 1
    assert "FAILED outputs.last_hidden_state" in log
    junit = JUnitXml.fromfile(str(checkout / "opfuse-reports" / "opfuse.junit.xml"))
    assert junit.failures == 1


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def hooked(checkout, environment, tmp_path):
    """A repository with the hook; the hook's own repository is a copy of the one file it needs."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    for folder in (hooks, checkout):
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "first")
    hook = {"id": "opfuse-check-system", "args": ["models/my bert.onnx"]}
    config = {"repos": [{"repo": str(hooks), "rev": git(hooks, "rev-parse", "HEAD"),
                         "hooks": [hook]}]}  # fmt: skip
    (checkout / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    git(checkout, "add", "-A")
    environment["PRE_COMMIT_HOME"] = str(tmp_path / "home")

    def commit() -> tuple[int, str]:
        run = [sys.executable, "-m", "pre_commit", "run", "--color=never"]
        done = subprocess.run(
            run, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return commit


def test_the_hook_of_pre_commit(hooked, checkout):
    (checkout / "notes.txt").write_text("nothing to do with a model")
    git(checkout, "add", "-A")
    code, log = hooked()
    assert (code, "Skipped" in log) == (0, True), log
    planted.save(checkout / "models" / "my bert.onnx", planted.axis)
    git(checkout, "add", "-A")
    code, log = hooked()
    assert code == 1
    assert "FAILED fusions.FlashAttention: FlashAttention 3 -> 2" in log
    planted.save(checkout / "models" / "my bert.onnx")
    (checkout / "opfuse.lock").write_text((checkout / "opfuse.lock").read_text() + "\n")
    git(checkout, "add", "-A")
    code, log = hooked()
    assert (code, "Passed" in log) == (0, True), log


def test_both_hooks_are_one():
    built, system = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    apart = {name for name in built if built[name] != system[name]}
    assert apart == {"id", "language", "description"}
    for name in ("bert.lock", "bert.onnx", "bert.onnx.data", "bert.onnx_data", "calibrate.npz"):
        assert re.search(built["files"], f"models/{name}")
    assert re.search(built["files"], "opfuse.toml")
    assert not re.search(built["files"], "models/bert.py")
