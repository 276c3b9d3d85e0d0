"""The rewiring of benchmarks/: mutants of an exported model, and what is said of each."""

from __future__ import annotations

import random

import onnx
import pytest

from benchmarks import rewire
from models import tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("rewire") / "bert.onnx"
    onnx.save(tiny.bert(layers=1).model(), made)
    return made


def test_no_mutant_changes_its_numbers(path):
    found = list(rewire.verdicts(path, 25, 0))
    assert not [verdict for verdict in found if verdict.failed]
    assert sum(verdict.result == "same" for verdict in found) > 10


def test_a_mutant_reads_another_tensor_that_is_there_already(path):
    model = onnx.load(path)
    kinds = rewire._kinds(model, rewire._feeds(model, 0))
    mutant, wiring = rewire.rewired(model, kinds, random.Random(3))
    assert wiring
    assert mutant != model
    onnx.checker.check_model(mutant)
    again, _ = rewire.rewired(model, kinds, random.Random(3))
    assert again == mutant


def _negated(model, folder, library):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    names = {info.name for info in model.graph.output}
    for node in changed.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = f"{name}_before" if name in names else name
    changed.graph.node.extend(onnx.helper.make_node("Neg", [f"{n}_before"], [n]) for n in names)
    return changed


def _broken(model, folder, library):
    raise KeyError("planted")


@pytest.mark.parametrize(("fuse", "result"), [(_negated, "wrong"), (_broken, "crash")])
def test_what_a_fusion_changes_is_seen(path, fuse, result, monkeypatch):
    monkeypatch.setattr(rewire, "_fused", fuse)
    model = onnx.load(path)
    verdict = rewire.judged(model, (), path.parent, rewire._feeds(model, 0))
    assert verdict.result == result
    assert verdict.failed


def test_a_mutant_that_does_not_run_is_none(path):
    model = onnx.load(path)
    drawn = rewire._feeds(model, 0)
    model.graph.node[0].op_type = "Unheard"
    assert rewire.judged(model, (), path.parent, drawn).result == "invalid"


def test_models_in_half_precision_are_left(tmp_path):
    """onnxruntime on a CPU rounds them elsewhere once they are fused."""
    model = tiny.bert(layers=1).model()
    info = onnx.helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT16, ["batch"])
    model.graph.input.append(info)
    onnx.save(model, tmp_path / "half.onnx")
    assert not list(rewire.verdicts(tmp_path / "half.onnx", 3, 0))
