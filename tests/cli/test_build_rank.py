"""`opfuse build` on the file of one rank: TensorRT's own collectives, built without a GPU."""

from __future__ import annotations

import json
from collections import Counter

import onnx
import pytest

from opfuse.graph.collectives import SPEAKING, WITH_NORM, Rank, rank_of
from opfuse.runtime.bundle import Bundle
from tests.engine_models import plugin_ops

OPS = plugin_ops()
pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def ranks(cli, llama, tmp_path):
    made = cli("shard", llama, "--tp", 2, "-o", tmp_path / "r", "--no-prove", "--shard-vocab")
    assert made.code == 0, made.err
    return tmp_path / "r"


@pytest.mark.parametrize("lower", ["native", "leave"])
def test_an_engine_with_tensorrts_collectives(cli, ranks, tmp_path, lower):
    """Two sums are in fused norms; the embedding is summed, and the scores are gathered."""
    options = ["--backend", "tensorrt-rtx", "--lower", lower, "--json"]
    result = cli("build", ranks / "rank1.onnx", "-o", tmp_path / "r1.engine", *options)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    layers = Counter(report["engine"]["layer_types"])
    assert (layers["comm_allreduce"], layers["comm_allgather"]) == (3, 1)
    choices = {item["op"]: item["choice"] for item in report["lowering"]}
    assert choices["AllReduce"] == choices["AllGather"] == "native"
    assert report["model"]["rank"]["rank"] == 1
    assert report["proof"]["failed"] == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_rank_in_another_precision(cli, ranks, tmp_path, precision):
    """Both are judged with the same stand-ins for what the other rank sends."""
    options = ["--precision", precision, "--report", tmp_path / "r.json"]
    result = cli("fuse", ranks / "rank0.onnx", "-o", tmp_path / "f.onnx", *options)
    assert result.code == 0, result.err
    report, model = json.loads((tmp_path / "r.json").read_text()), onnx.load(tmp_path / "f.onnx")
    assert report["precision"]["precision"] == precision
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    low = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    sent = [node.input[0] for node in model.graph.node if node.op_type == WITH_NORM]
    assert {types[name] for name in sent} == {low}
    assert rank_of(model).rank == 0


def test_a_bundle_has_no_communicator_for_them(cli, ranks, tmp_path):
    options = ["--backend", "segmented", "--lower", "native", "--no-prove"]
    result = cli("build", ranks / "rank0.onnx", "-o", tmp_path / "r0.opfuse", *options)
    result.refused(4, "DistCollective", "--lower plugin")
    assert not (tmp_path / "r0.opfuse").exists()


@pytest.mark.skipif(not OPS.issuperset(SPEAKING), reason="the plugin library has no collectives")
def test_a_bundle_says_whose_it_is(cli, ranks, tmp_path):
    bundle = tmp_path / "r1.opfuse"
    options = ["--backend", "segmented", "--lower", "plugin", "--no-prove", "--json"]
    result = cli("build", ranks / "rank1.onnx", "-o", bundle, *options)
    assert result.code == 0, result.err
    opened = Bundle.open(bundle)
    plan = json.loads((ranks / "plan.json").read_text())
    assert opened.rank == Rank(1, 2, plan["sha256"])
    launched = Counter(step.op for step in opened.schedule.plugins())
    assert {op: launched[op] for op in SPEAKING} == plan["collectives"]
    rest = onnx.load_from_string(opened.read("fused.onnx"))
    assert rank_of(rest) == opened.rank
