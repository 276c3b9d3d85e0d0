"""`opfuse package` of a sharded model: all ranks in one model of Triton, or why not."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

import opfuse
from models import tiny
from opfuse.cli import main
from opfuse.errors import InputError
from opfuse.runtime import bundle
from tests.cli.test_together import built
from tests.serving.test_package import report

VERSION = "11.1.0"


@pytest.fixture
def folder(tmp_path):
    """A sharded model with a file and a report in the place of each engine."""
    model = tiny.llama(layers=1).write(tmp_path / "llama.onnx")
    opfuse.shard(model, tmp_path / "net-tp2", 2, prove=False)
    for rank in range(2):
        engine(tmp_path / "net-tp2", rank)
    return tmp_path / "net-tp2"


def engine(folder, number, content=b"", magic=b"ftrt", version=VERSION, **stated):
    path = folder / f"rank{number}.engine"
    path.write_bytes(magic + str(number).encode() + content)
    plan = json.loads((folder / "plan.json").read_text())
    layers = stated.pop("plugin_layers", None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = report(digest, version=version, plugin_layers=layers)
    facts["model"]["rank"] = {"rank": number, "size": 2, "plan": plan["sha256"]} | stated
    path.with_suffix(".json").write_text(json.dumps(facts))


def test_all_ranks_in_one_model(folder, tmp_path, parse_config):
    made = opfuse.package(folder, tmp_path / "repository", name="llama")
    model = tmp_path / "repository" / "llama"
    names = ["model.plan", "model.plan.rank0", "model.plan.rank1"]
    assert sorted(os.listdir(model / "1")) == names
    assert os.readlink(model / "1" / "model.plan") == "model.plan.rank0"
    assert (model / "1" / "model.plan.rank1").read_bytes() == b"ftrt1"
    config = parse_config((model / "config.pbtxt").read_text())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (config.instance_group[0].KIND_MODEL, 1)
    assert {key: item.string_value for key, item in config.parameters.items()} == {
        "enable_multi_device": "true",
        "multi_device_gpus": "0,1",
        "multi_device_per_rank_engines": "true",
    }
    assert any("TRITON_ENABLE_TENSORRT_MULTI_DEVICE" in note for note in made.notes)
    assert set(made.files) == {"config.pbtxt", *(f"1/{name}" for name in names)}
    opfuse.package(folder, tmp_path / "repository", name="llama")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "rank1.engine").unlink(), "there is no"),
        (lambda f: engine(f, 1, plan="another"), "is not rank 1 of"),
        (lambda f: engine(f, 1, rank=0), "is not rank 1 of"),
        (lambda f: engine(f, 1, version="10.16.1"), "is of TensorRT 10.16.1, want 11 or later"),
        (lambda f: engine(f, 1, version="11.4.0"), "was built otherwise than"),
        (lambda f: engine(f, 1, magic=b"vtrt" + bytes(32)), "was built by tensorrt_rtx"),
        (lambda f: engine(f, 0, plugin_layers={"AllReduceAddNorm": 2}), "by plugins"),
        (lambda f: (f / "plan.json").unlink(), "has no plan.json of opfuse shard"),
    ],
)
def test_what_triton_cannot_serve(folder, tmp_path, change, says):
    change(folder)
    with pytest.raises(InputError, match=says):
        opfuse.package(folder, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_bundle_takes_a_process_for_each_rank(folder, tmp_path):
    (folder / "rank0.engine").rename(folder / "rank0.opfuse")
    with pytest.raises(InputError, match="a bundle takes a process for each rank"):
        opfuse.package(folder, tmp_path / "repository")


def test_inputs_of_which_ranks_have_parts(folder, tmp_path):
    plan = json.loads((folder / "plan.json").read_text())
    plan["inputs"] = [{"name": "past", "axis": 1, "ranks": [[0], [1]]}]
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="each rank has a part of 'past' alone"):
        opfuse.package(folder, tmp_path / "repository")


@pytest.mark.parametrize("name", ["rank1.engine", "rank1.opfuse"])
def test_one_rank_does_not_run_alone(folder, tmp_path, name, capsys):
    built(folder, 1)
    assert bundle.is_bundle(folder / "rank1.opfuse")
    assert main(["package", str(folder / name), "--triton", str(tmp_path / "repository")]) == 2
    assert f"{name} is rank 1 of 2, which does not run alone" in capsys.readouterr().err
