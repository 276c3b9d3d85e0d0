"""Which of the user's nodes a fusion stands for."""

from __future__ import annotations

import pytest

from models import tiny
from opfuse.stages.fuse import fuse
from opfuse.stages.load import load
from opfuse.stages.normalise import normalise
from tests.small import fuse_model, model


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    path = tmp_path_factory.mktemp("lineage") / "llama.onnx"
    return fuse(normalise(load(tiny.llama(layers=3).write(path))))


def ops(fused, match) -> list[str]:
    indices = fused.user.between(match.reads, match.writes)
    return [fused.user.nodes[index].op for index in indices]


def test_a_match_stands_for_its_own_nodes_alone(fused):
    """Layers share masks, angles, and sizes; none of that leads into another layer."""
    cores = [match for match in fused.matches if match.kind == "FlashAttention"]
    assert len(cores) == 3
    for match in cores:
        assert ops(fused, match).count("Softmax") == 1
        assert "ReduceMean" not in ops(fused, match)
    for match in (match for match in fused.matches if match.kind == "AddRmsNorm"):
        assert ops(fused, match).count("ReduceMean") == 1
        assert "MatMul" not in ops(fused, match)


def test_no_node_belongs_to_two_attentions(fused):
    regions = [
        index
        for match in fused.matches
        if match.kind == "FlashAttention"
        for index in fused.user.between(match.reads, match.writes)
        if fused.user.nodes[index].op in ("MatMul", "Softmax", "Add", "Mul")
    ]
    assert len(regions) == len(set(regions))


def test_anchors_have_the_names_of_the_model(fused):
    names = {node.name for node in fused.user.nodes}
    assert [match.anchor for match in fused.matches if match.anchor not in names] == []


def test_what_the_normal_form_rewrites_keeps_its_name():
    text = """
        h = Gemm<transB=1>(x, w, b)
        r = Relu(h)
        same = Identity(r)
        y = Neg(same)
    """
    weights = {"w": (7, 5), "b": (7,)}
    outcome = fuse_model(model(text, "T[S, 5] x", "T y", weights, "float", 18))
    (match,) = outcome.fused.matches
    assert match.anchor == "r"
    assert ops(outcome.fused, match) == ["Gemm", "Relu", "Identity"]


def test_a_blocker_that_was_rewritten_has_its_name_of_the_model():
    text = """
        g0 = Gemm(x, wg, bg)
        u0 = Gemm(x, wu, bu)
        s = Sigmoid(g0)
        a = Mul(g0, s)
        y = Mul(a, u0)
        other = Gemm(z, wu, bu)
    """
    weights = {"wg": (5, 7), "wu": (5, 7), "bg": (7,), "bu": (7,)}
    inputs, outputs = "T[S, 5] x, T[S, 5] z", "T y, T other"
    outcome = fuse_model(model(text, inputs, outputs, weights, "float", 18))
    (miss,) = [miss for miss in outcome.fused.misses if miss.kind == "gate_up_merge"]
    assert miss.node == "other (Gemm)"
