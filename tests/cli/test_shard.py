"""`opfuse shard`: the folder that it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest

import opfuse
from models import tiny
from opfuse.graph.collectives import Rank, rank_of, state
from tests import small

T5 = Path(__file__).resolve().parents[2] / "models" / "t5_encoder_fp16.onnx"


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
    sums = [node for node in model.graph.node if node.op_type == "AllReduceAddNorm"]
    assert len(sums) == plan["collectives"]["AllReduceAddNorm"] == len(plan["attentions"]) * 2
    assert {node.domain for node in sums} == {"opfuse"}
    assert rank_of(model) == Rank(1, 2, plan["sha256"])


def test_sums_without_a_norm_are_told(cli, tmp_path):
    """T5 in fp16 limits the residual stream in fp32 before it is a norm's."""
    result = cli("shard", T5, "--tp", 2, "-o", tmp_path / "r", "--no-prove")
    assert "no norm is fused with 6 of the sums: no fused norm stands right behind it" in result.out


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


def test_key_heads_that_do_not_divide_are_told(cli, tmp_path):
    """Three of six query heads need two key heads, of which there are three."""
    model = tiny.llama(layers=1, hidden=48, heads=6, kv_heads=3).write(tmp_path / "m.onnx")
    result = cli("shard", model, "--tp", 2, "-o", tmp_path / "r")
    assert "heads do not divide among the ranks: several hold the same ones" in result.out
    text = cli("shard", model, "--tp", 3, "-o", tmp_path / "r").out
    assert "several hold the same ones" not in text


def test_more_ranks_than_the_plugins_reach_are_told(cli, tmp_path):
    model = tiny.llama(layers=1, hidden=192, heads=12, kv_heads=12).write(tmp_path / "m.onnx")
    result = cli("shard", model, "--tp", 12, "-o", tmp_path / "r", "--no-prove")
    assert result.code == 0, result.err
    assert "the plugins reach 8 ranks: build these with --lower native" in result.out
    text = cli("shard", model, "--tp", 6, "-o", tmp_path / "r", "--no-prove").out
    assert "the plugins reach" not in text


def test_a_model_of_nothing_but_nan_is_not_proven(cli, tmp_path):
    text = "h = MatMul(x, w)\na = Relu(h)\nm = MatMul(a, v)\ns = Abs(m)\nn = Neg(s)\ny = Log(n)\n"
    nothing = small.model(text, "T[B, 6] x", weights={"w": (6, 8), "v": (8, 6)})
    onnx.save(nothing, tmp_path / "m.onnx")
    result = cli("shard", tmp_path / "m.onnx", "--tp", 2, "-o", tmp_path / "r")
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "not proven: the model does not run, or gives nothing: all that it gives" in text
    verified = cli("verify", tmp_path / "m.onnx", tmp_path / "m.onnx")
    verified.refused(2, "gives nothing to compare", "NaN or infinite")


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


@pytest.fixture
def rank(cli, llama, tmp_path):
    cli("shard", llama, "--tp", 2, "-o", tmp_path / "r", "--no-prove")
    return tmp_path / "r" / "rank1.onnx"


@pytest.mark.parametrize(
    "command",
    [
        ["shard", "{}", "--tp", 2, "-o", "x"],
        ["verify", "{}", "{}"],
        ["check", "{}", "--lock", "x", "--update"],
    ],
    ids=lambda command: command[0],
)
def test_a_rank_does_not_run_alone(cli, rank, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    words = [rank if word == "{}" else word for word in command]
    cli(*words).refused(2, "is one of 2 ranks", "give the model that was sharded")
    assert not (tmp_path / "x").exists()


def test_a_rank_is_fused_like_any_model(cli, rank, tmp_path):
    """Fusing it again finds nothing new, and it stays that rank."""
    result = cli("fuse", rank, "-o", tmp_path / "f.onnx", "--report", tmp_path / "r.json")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["fusions"]["AllReduceAddNorm"]["fused"] == 2
    assert report["proof"]["max_rel_err"] == 0
    stated = rank_of(onnx.load(tmp_path / "f.onnx"))
    assert stated == rank_of(onnx.load(rank)) == Rank(**report["model"]["rank"])


def test_a_rank_that_does_not_say_which_it_is(cli, rank, tmp_path):
    model = onnx.load(rank)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    cli("explain", tmp_path / "m.onnx").refused(2, "does not say which it is", "opfuse shard")


def test_a_rank_of_another_number_of_ranks(cli, rank, tmp_path):
    model = onnx.load(rank)
    state(model, Rank(1, 4, "plan"))
    onnx.save(model, tmp_path / "m.onnx")
    cli("explain", tmp_path / "m.onnx").refused(2, "is rank 1 of 4, its collectives are of 2")


def test_other_weights_are_another_plan(cli, llama, rank, tmp_path):
    """Ranks of two checkpoints of one architecture must not run together."""
    model = onnx.load(llama)
    weight = next(t for t in model.graph.initializer if len(t.raw_data) > 4096)
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, tmp_path / "other.onnx")
    cli("shard", tmp_path / "other.onnx", "--tp", 2, "-o", tmp_path / "o", "--no-prove")
    other = onnx.load(tmp_path / "o" / "rank1.onnx")
    assert rank_of(other) != rank_of(onnx.load(rank))


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
