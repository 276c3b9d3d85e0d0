"""Lines of anchors that are told from what stands behind them."""

from __future__ import annotations

from opfuse.stages.explain import explain
from tests.explanation.planted import ANGLES, GELU, PROJECTED, THREE, TURN
from tests.small import fuse_model, model


def anchors(text, inputs, outputs, weights):
    outcome = fuse_model(model(text, inputs, outputs, weights, "float", 18))
    return {anchor.node: anchor for anchor in explain(outcome.fused, "H100", {}).anchors}


def test_angles_tell_of_the_rotation_that_reads_them():
    found = anchors(TURN, ANGLES, "T y", {"frequencies": (1, 3)})
    assert {node: str(anchor) for node, anchor in found.items()} == {
        "cos": "fused as Rope at y/Rope",
        "sin": "fused as Rope at y/Rope",
    }


def test_projections_are_one_line():
    found = anchors(PROJECTED, "T[B, S, 32] x", "T context", THREE)
    assert found["q0"].op == "MatMul group of 3"
    assert (found["q0"].status, found["q0"].kind) == ("fused", "qkv_merge")
    assert not {"k0", "v0"} & found.keys()


def test_projections_of_an_attention_that_is_blocked_say_so():
    text = PROJECTED + "seen = Neg(weights)"
    said = anchors(text, "T[B, S, 32] x", "T context, T seen", THREE)["q0"]
    assert (said.status, said.kind) == ("nearly", "qkv_merge")
    assert said.blocker == "seen (Neg)"
    assert said.reason.startswith("its FlashAttention is not fused: weights inside it")


def test_an_operator_alone_is_no_candidate():
    found = anchors("y = Tanh(x)\nz = Softmax(x)", "T[B, S, 32] x", "T y, T z", {})
    assert {anchor.status for anchor in found.values()} == {"not a candidate"}


def test_a_norm_that_stays_whole_is_recognised():
    text = "n = LayerNormalization(x, gamma, beta)\ny = Sqrt(n)"
    found = anchors(text, "T[B, S, 32] x", "T y", {"gamma": (32,), "beta": (32,)})
    assert str(found["n"]) == "fused as LayerNormalization at n"


def test_the_parts_of_one_gelu_are_one_line():
    found = anchors(GELU, "T[2, S, 5] x", "T y", {"w": (5, 7), "b": (7,)})
    assert list(found) == ["e"]
    assert str(found["e"]) == "fused as GemmAct at y/GemmAct"
