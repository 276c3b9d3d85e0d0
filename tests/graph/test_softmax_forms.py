"""Softmax with its maximum taken off, or written out, becomes the operator; what differs stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = {"B": 2, "S": 3}
WRITTEN = """
    top = ReduceMax(x, [-1])
    less = Sub(x, top)
    e = Exp(less)
    total = ReduceSum(e, [-1])
    y = Div(e, total)
"""


def spelt(text: str, outputs: str = "T y", opset: int = 18):
    outcome = fuse_model(model(text, "T[B, S, S] x", outputs, opset=opset))
    far = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32) * 300
    far[0, 0] = -np.inf
    outcome.same(SIZES)
    outcome.same(SIZES, x=far)
    return outcome.ops


def test_written_out():
    assert spelt(WRITTEN) == ["Softmax"]


@pytest.mark.parametrize("axis", ["-1", "2", "1"])
def test_a_maximum_that_is_taken_off_twice(axis):
    text = f"top = ReduceMax(x, [{axis}])\nless = Sub(x, top)\ny = Softmax<axis={axis}>(less)"
    assert spelt(text) == ["Softmax"]


def test_before_opset_18():
    text = WRITTEN.replace("ReduceMax(x, [-1])", "ReduceMax<axes=[-1]>(x)")
    assert spelt(text, opset=13) == ["Softmax"]


OTHER = {
    "a sum over another axis": ("ReduceSum(e, [-1])", "ReduceSum(e, [1])"),
    "a maximum over another axis": ("ReduceMax(x, [-1])", "ReduceMax(x, [1])"),
    "a minimum": ("ReduceMax", "ReduceMin"),
    "no maximum": ("Exp(less)", "Exp(x)"),
    "a sum of something else": ("ReduceSum(e, [-1])", "ReduceSum(less, [-1])"),
    "added": ("Sub(x, top)", "Add(x, top)"),
    "taken from the maximum": ("Sub(x, top)", "Sub(top, x)"),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_is_no_softmax_stays(case):
    outcome = fuse_model(model(WRITTEN.replace(*OTHER[case]), "T[B, S, S] x"))
    assert "Softmax" not in outcome.ops
    outcome.same(SIZES)


def test_a_maximum_over_another_axis_stays():
    text = "top = ReduceMax(x, [1])\nless = Sub(x, top)\ny = Softmax<axis=-1>(less)"
    outcome = fuse_model(model(text, "T[B, S, S] x"))
    assert outcome.ops == ["ReduceMax", "Sub", "Softmax"]
    outcome.same(SIZES)


def test_what_is_read_elsewhere_stays_for_it():
    assert spelt(WRITTEN, "T y, T e") == ["ReduceMax", "Sub", "Exp", "Softmax"]


def test_choices_with_two_fills_stay_two():
    text = "a = Where(c, x, -1.0)\ny = Where(d, a, -2.0)"
    outcome = fuse_model(model(text, "T[B, S, S] x, bool[S, S] c, bool[B, 1, S] d"))
    assert outcome.ops == ["Where", "Where"]
    outcome.same(SIZES)


def test_a_maximum_that_is_taken_off_before_a_cast():
    text = """
        top = ReduceMax(x, [-1])
        less = Sub(x, top)
        wide = Cast<to=1>(less)
        odds = Softmax<axis=-1>(wide)
        y = Cast<to=10>(odds)
    """
    outcome = fuse_model(model(text, "T[B, S, S] x", dtype="float16"))
    assert outcome.ops == ["Cast", "Softmax", "Cast"]
    outcome.same(SIZES)
