"""`opfuse bench --tp` and `opfuse verify --tp` as far as no GPU is needed."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from models import tiny
from opfuse.engine import gpu
from opfuse.engine.gpu import Gpu
from opfuse.errors import EngineError
from opfuse.runtime import bundle
from opfuse.runtime.lock import Lock
from opfuse.stages import start

LOCK = Lock("tensorrt_rtx", "1.4.0.76", None, "", (), "0.1.0")
H100 = Gpu("NVIDIA H100", "9.0")
PORTS = ("input_ids", "attention_mask", "position_ids")


def schedule(node, outputs=("logits",)):
    """One sum over the ranks between the Llama's inputs and outputs."""
    step = {"kind": "plugin", "op": "AllReduce", "node": node, "attributes": {"group_size": 2}}
    return {
        "inputs": [{"name": name, "dtype": 7, "shape": ["batch", "seq"]} for name in PORTS],
        "outputs": [{"name": name, "dtype": 1, "shape": ["batch", "seq", 8]} for name in outputs],
        "between": [],
        "constants": [],
        "steps": [{**step, "inputs": ["input_ids"], "outputs": list(outputs)}],
    }


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(cli, llama, tmp_path):
    """A sharded model with bundles that hold nothing but who they are."""
    cli("shard", llama, "--tp", 2, "-o", tmp_path / "r", "--no-prove")
    for rank in range(2):
        built(tmp_path / "r", rank)
    return tmp_path / "r"


def built(folder, number, lock=LOCK, node="sum", outputs=("logits",), **changes):
    plan = json.loads((folder / "plan.json").read_text())
    stated = {"rank": number, "size": plan["ranks"], "plan": plan["sha256"]} | changes
    manifest = {"schedule": schedule(node, outputs), "lock": lock.as_dict(), "ranks": stated}
    manifest |= {"constants": {}, "profile": {}}
    bundle.write(folder / f"rank{number}.opfuse", manifest, {})


COMMANDS = [["bench", "{folder}"], ["verify", "{folder}", "{model}"]]


def line(command, folder, model):
    return [word.format(folder=folder, model=model) for word in command]


@pytest.mark.parametrize("command", COMMANDS, ids=["bench", "verify"])
def test_a_dry_run_tells_what_would_run(cli, folder, llama, command):
    result = cli(*line(command, folder, llama), "--tp", 2, "--dry-run", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["tp"], found["dry_run"]) == (2, True)
    assert found["bundles"] == [str(folder / f"rank{rank}.opfuse") for rank in range(2)]
    assert found["facts"]["tensorrt"] == "tensorrt_rtx 1.4.0.76"
    text = cli(*line(command, folder, llama), "--tp", 2, "--dry-run").out
    assert "2 ranks belong together" in text


@pytest.mark.parametrize("command", COMMANDS, ids=["bench", "verify"])
def test_a_dry_run_reads_each_bundle_once(cli, folder, llama, command, monkeypatch):
    """They are hashed then, and may be of many gigabytes."""
    opened, damage = [], bundle._damage
    monkeypatch.setattr(bundle, "_damage", lambda path: opened.append(path.name) or damage(path))
    cli(*line(command, folder, llama), "--tp", 2, "--dry-run")
    assert opened == ["rank0.opfuse", "rank1.opfuse"]


@pytest.mark.parametrize("command", COMMANDS, ids=["bench", "verify"])
def test_too_few_gpus(cli, folder, llama, command):
    if gpu.count() >= 2:
        pytest.skip("there are two GPUs")
    cli(*line(command, folder, llama), "--tp", 2).refused(3, "2 ranks run on 2 GPUs")


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        (lambda f: (f / "rank1.opfuse").unlink(), 2, "there is no"),
        (lambda f: (f / "plan.json").write_text("{}"), 2, "has no plan.json of opfuse shard"),
        (lambda f: (f / "rank1.opfuse").write_bytes(b"PK\3\4"), 2, "is no opfuse bundle"),
        (lambda f: built(f, 1, rank=0), 4, "rank 1 was given the file of rank 0"),
        (lambda f: built(f, 1, plan="another"), 4, "rank1.opfuse is of another plan"),
        (lambda f: built(f, 1, size=3), 4, "differ in how many ranks there are: 2 and 3"),
        (lambda f: built(f, 1, replace(LOCK, tensorrt="1.5")), 4, "what the bundle was built with"),
        (lambda f: built(f, 1, replace(LOCK, gpu=H100)), 4, "for any GPU and tensorrt_rtx"),
        (lambda f: built(f, 1, replace(LOCK, library="ab")), 4, "differ in the plugin library"),
        (lambda f: built(f, 1, replace(LOCK, opfuse="9")), 4, "differ in the version of opfuse"),
        (lambda f: built(f, 1, node="another sum"), 4, "differ in the order of their collectives"),
    ],
)
def test_ranks_that_do_not_belong_together(cli, folder, break_it, code, says):
    break_it(folder)
    cli("bench", folder, "--tp", 2, "--dry-run").refused(code, says)


def test_another_number_of_ranks(cli, folder):
    cli("bench", folder, "--tp", 4).refused(2, "is cut for 2 ranks, not 4")


def test_a_rank_beside_the_ranks(cli, folder):
    rank = folder / "rank1.opfuse"
    result = cli("bench", folder, "--tp", 2, "--dry-run", "--vs", rank)
    result.refused(2, "rank1.opfuse is rank 1 of 2", "of the whole model")


def test_a_launcher_of_another_number(cli, folder, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("MASTER_PORT", "29500")
    cli("bench", folder, "--tp", 2).refused(2, "3 processes were started for 2 ranks")


@pytest.mark.parametrize(
    ("name", "says"), [("rank0.onnx", "is one of 2 ranks"), ("nothing.onnx", "does not exist")]
)
def test_a_dry_run_reads_the_model(cli, folder, name, says):
    cli("verify", folder, folder / name, "--tp", 2, "--dry-run").refused(2, says)


def test_a_dry_run_knows_the_model_that_was_sharded(cli, folder, llama, tmp_path):
    words = ("--tp", 2, "--dry-run")
    assert json.loads(cli("verify", folder, llama, *words, "--json").out)["same_model"] is True
    assert "the model is the one that was sharded" in cli("verify", folder, llama, *words).out
    other = tiny.llama(layers=2).write(tmp_path / "other.onnx")
    text = cli("verify", folder, other, *words).out
    assert "it is another model than the one that was sharded" in text


def test_a_dry_run_refuses_a_model_with_other_outputs(cli, folder, tmp_path):
    bert = tiny.bert(layers=1).write(tmp_path / "bert.onnx")
    result = cli("verify", folder, bert, "--tp", 2, "--dry-run")
    result.refused(2, "the inputs of", "only one side has", "name the model that was sharded")
    for rank in range(2):
        built(folder, rank, outputs=("scores",))
    result = cli("verify", folder, tmp_path / "llama.onnx", "--tp", 2, "--dry-run")
    result.refused(2, "the outputs of", "only one side has 'logits'")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "there is no"),
        ("plan.opfuse", "plan.opfuse is no opfuse bundle"),
        ("rank0.onnx", "is one of 2 ranks"),
    ],
)
def test_a_dry_run_reads_what_the_ranks_are_timed_beside(cli, folder, name, says):
    (folder / "plan.opfuse").write_text("{}")
    cli("bench", folder, "--tp", 2, "--dry-run", "--vs", folder / name).refused(2, says)


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "{folder}"),
        ("bench", "x.opfuse", "--vs", "{folder}"),
        ("verify", "{folder}", "{model}"),
        ("verify", "{model}", "{folder}"),
        ("verify", "--bisect", "{folder}", "{model}"),
        ("verify", "--layers", "{folder}", "{model}"),
    ],
    ids=" ".join,
)
def test_a_folder_of_ranks_where_one_model_is_wanted(cli, folder, llama, words):
    result = cli(*line(words, folder, llama))
    result.refused(2, "holds the 2 ranks of a sharded model", "give --tp 2 too")


def test_a_module_may_be_timed_beside_the_ranks(cli, folder):
    assert cli("bench", folder, "--tp", 2, "--dry-run", "--vs", "module.py:make").code == 0


def test_a_folder_of_ranks_beside_the_ranks(cli, folder):
    result = cli("bench", folder, "--tp", 2, "--vs", folder)
    result.refused(2, "holds the 2 ranks of a sharded model")


def test_a_dry_run_of_one_engine(cli, folder):
    cli("bench", folder / "rank0.opfuse", "--dry-run").refused(2, "give --tp N too")


@pytest.mark.parametrize("option", ["--layers", "--bisect"])
def test_steps_are_of_one_bundle(cli, folder, llama, option):
    result = cli("verify", folder, llama, "--tp", 2, option)
    result.refused(2, f"{option} is for one bundle")


def test_all_ranks_run_the_command_and_one_prints(capfd):
    assert start.start(["--version"], 3) == 0
    assert capfd.readouterr().out.count("opfuse 0") == 1


def test_a_rank_that_fails_is_told_with_its_number(capfd):
    assert start.start(["explain", "no-such.onnx"], 2) == 2
    said = capfd.readouterr().err
    assert said.count("no-such.onnx does not exist") == 2
    assert "rank 1: opfuse: error: no-such.onnx does not exist" in said


@pytest.fixture
def script(monkeypatch):
    """Let every rank run a script of its own in the place of opfuse."""

    def set_to(text):
        monkeypatch.setattr(start, "_START", "import os, signal, sys, time\n" + text)
        monkeypatch.setattr(start, "_LAST_S", 0.5)

    return set_to


def test_a_rank_that_hangs_is_ended_once_another_fails(script):
    script("time.sleep(600) if os.environ['RANK'] == '0' else sys.exit(4)")
    began = time.monotonic()
    assert start.start([], 3) == 4
    assert time.monotonic() - began < 10


def test_a_rank_that_is_killed(script):
    script("os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineError, match="rank 1 was killed by SIGKILL"):
        start.start([], 2)


def test_ranks_know_their_place(script, tmp_path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OPFUSE_JOB")
    script(
        f"folder = {str(tmp_path)!r}\n"
        f"told = [os.environ[name] for name in {names!r}]\n"
        "open(os.path.join(folder, told[0]), 'w').write(' '.join(told))"
    )
    assert start.start([], 2) == 0
    first, second = ((tmp_path / name).read_text().split() for name in "01")
    assert (first[:3], second[:3]) == (["0", "2", "0"], ["1", "2", "1"])
    assert first[3:] == second[3:]
