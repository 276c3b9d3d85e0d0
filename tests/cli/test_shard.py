"""`opfuse shard`: the folder that it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import os

import onnx
import pytest

import opfuse
from models import tiny


def test_ranks_and_plan(cli, llama, tmp_path):
    folder = tmp_path / "ranks"
    result = cli("shard", llama, "--tp", 2, "-o", folder)
    assert result.code == 0, result.err
    assert "proven: all ranks together differ from the model by" in result.out
    assert sorted(os.listdir(folder)) == ["plan.json", "rank0.onnx", "rank1.onnx"]
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["schema"], plan["ranks"]) == (1, 2)
    assert plan["files"] == ["rank0.onnx", "rank1.onnx"]
    assert plan["proof"]["max_rel_err"] <= plan["proof"]["tolerance"]
    assert plan["weight_bytes"]["rank"] < plan["weight_bytes"]["model"]
    heads = {(item["heads"], item["kv_heads"]) for item in plan["attentions"]}
    assert heads == {(2, 1)}
    model = onnx.load(folder / "rank1.onnx")
    onnx.checker.check_model(model)
    sums = [node for node in model.graph.node if node.op_type == "AllReduce"]
    assert len(sums) == plan["collectives"]["AllReduce"] == len(plan["attentions"]) * 2
    assert {node.domain for node in sums} == {"opfuse"}


def test_the_plan_as_json(cli, llama, tmp_path):
    result = cli("shard", llama, "--tp", 4, "-o", tmp_path / "r", "--json", "--no-prove")
    found = json.loads(result.out)
    assert found == json.loads((tmp_path / "r" / "plan.json").read_text())
    assert found["proof"] is None
    assert all(item["replicated_kv"] for item in found["attentions"])


def test_more_ranks_than_heads_say_why_once(cli, tmp_path):
    two_layers = tiny.llama(layers=2).write(tmp_path / "m.onnx")
    result = cli("shard", two_layers, "--tp", 8, "-o", tmp_path / "r", "--no-prove")
    assert result.code == 0
    assert "would cut through 4 x 16" in " ".join(result.out.split())
    assert result.out.count("no product behind it is split") == 1


def test_weights_beside_the_model_are_cut_from_their_file(cli, tmp_path):
    model = tiny.llama(hidden=128, vocab=512).write(tmp_path / "m.onnx", external=True)
    folder = tmp_path / "ranks"
    assert cli("shard", model, "--tp", 2, "-o", folder, "--shard-vocab").code == 0
    data = list(folder.glob("rank*.data"))
    assert len(data) == 2
    whole = (tmp_path / "m.onnx.data").stat().st_size
    assert all(path.stat().st_size < 0.6 * whole for path in data)


def test_the_library_does_the_same(llama, tmp_path):
    shards = opfuse.shard(llama, tmp_path / "r", 2, shard_vocab=True)
    assert shards.plan.collectives["AllGather"] == 1
    assert shards.proof is not None
    assert shards.proof.passed


def test_the_folder_of_an_earlier_run_is_replaced(cli, llama, tmp_path):
    folder = tmp_path / "r"
    cli("shard", llama, "--tp", 4, "-o", folder, "--no-prove")
    assert cli("shard", llama, "--tp", 2, "-o", folder, "--no-prove").code == 0
    assert not (folder / "rank3.onnx").exists()


def test_a_folder_with_other_files_is_left_alone(cli, llama, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    cli("shard", llama, "--tp", 2, "-o", tmp_path / "mine").refused(2, "holds other files")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tp", 1], "give --tp 2 or more"),
        ([], "give one with --tp N"),
        (["--tp", 3], "do not divide among 3 ranks"),
    ],
)
def test_ranks_that_cannot_be(cli, llama, tmp_path, options, says):
    cli("shard", llama, "-o", tmp_path / "r", *options).refused(2, says)
    assert not (tmp_path / "r").exists()


def test_no_folder_is_named(cli, llama):
    cli("shard", llama, "--tp", 2).refused(2, "name one with -o")


@pytest.mark.parametrize("command", ["shard", "fuse", "build", "explain"])
def test_a_rank_is_no_model_of_its_own(cli, llama, tmp_path, command):
    cli("shard", llama, "--tp", 2, "-o", tmp_path / "r", "--no-prove")
    output = [] if command == "explain" else ["-o", tmp_path / "x"]
    ranks = ["--tp", 2] if command == "shard" else []
    result = cli(command, tmp_path / "r" / "rank0.onnx", *output, *ranks)
    result.refused(2, "is one of 2 ranks", "give the model that was sharded")
    assert not (tmp_path / "x").exists()


def test_ranks_that_differ_are_not_written(cli, llama, tmp_path, monkeypatch):
    """The proof reads the files as they are delivered: a share too large is seen there."""
    from opfuse.sharding import cut

    monkeypatch.setattr(cut, "take", _shifted)
    result = cli("shard", llama, "--tp", 2, "-o", tmp_path / "r")
    result.refused(1, "2 ranks do not compute what the model does", "--no-prove")
    assert not (tmp_path / "r").exists()


def _shifted(constant, axis, indices, base_dir):
    from opfuse.sharding.taken import take

    return take(constant, axis, (indices + 1) % constant.shape[axis], base_dir)
