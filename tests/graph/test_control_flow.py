"""Bodies of control flow are kept; the report tells what could have fused there."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

IF = """
    y = If (flag) <
        then_branch = yes () => (T[A, B] a) { s = Neg(x) a = %s(s) },
        else_branch = no () => (T[C, D] b) { b = Neg(x) }
    >
"""


def test_what_could_fuse_in_a_body_is_told():
    outcome = fuse_model(model(IF % "Softmax<axis=-1>", "T[S, 4] x, bool flag"))
    (miss,) = outcome.fused.misses
    assert (miss.kind, miss.node) == ("FlashAttention", "a (Softmax)")
    assert miss.reason == "stands in a body of y (If), and bodies are not rewritten"
    assert "without control flow" in miss.advice


@pytest.mark.parametrize("op", ["Neg", "ReduceSum<keepdims=1>"])
def test_what_is_no_part_of_a_fusion_is_not_told(op):
    outcome = fuse_model(model(IF % op, "T[S, 4] x, bool flag"))
    assert outcome.fused.misses == ()


def test_each_kind_is_told_once():
    text = IF.replace("a = %s(s)", "t = Softmax(s) u = Softmax(t) a = ReduceMean<keepdims=1>(u)")
    outcome = fuse_model(model(text, "T[S, 4] x, bool flag"))
    assert sorted(miss.kind for miss in outcome.fused.misses) == ["FlashAttention", "RmsNorm"]
