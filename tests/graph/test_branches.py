"""An If whose condition is known becomes the branch that it takes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model, session

TAKEN = """
    h = Neg(x)
    shape = Shape(h)
    rank = Size(shape)
    two = Constant<value_int=2>()
    flag = {condition}
    y = If (flag) <
        then_branch = yes () => (T[A, B] a) {{ t = Exp(h) a = Mul(t, h) }},
        else_branch = no () => (T[C, D] b) {{ t = Abs(h) b = Add(t, x) }}
    >
"""


@pytest.mark.parametrize(
    ("condition", "ops"),
    [
        ("Equal(rank, two)", ["Neg", "Exp", "Mul"]),
        ("Less(rank, two)", ["Neg", "Abs", "Add"]),
    ],
)
def test_a_known_condition_leaves_one_branch(condition, ops):
    outcome = fuse_model(model(TAKEN.format(condition=condition), "T[S, 4] x"))
    assert outcome.ops == ops
    outcome.same({"S": 3}, {"S": 1})


def test_a_branch_of_an_identity():
    text = TAKEN.format(condition="Equal(rank, two)").replace(
        "t = Exp(h) a = Mul(t, h)", "a = Identity(h)"
    )
    outcome = fuse_model(model(text, "T[S, 4] x"))
    assert outcome.ops == ["Neg"]
    outcome.same({"S": 3})


def test_two_branches_of_the_same_inner_names():
    text = TAKEN.format(condition="Equal(rank, two)")
    second = text.replace("y = If", "z = If")[text.index("y = If") :]
    outcome = fuse_model(model(text + second.replace("Exp", "Sqrt"), "T[S, 4] x", "T y, T z"))
    assert "If" not in outcome.ops
    outcome.same({"S": 3})


def test_a_branch_that_returns_one_tensor_twice():
    text = TAKEN.format(condition="Equal(rank, two)")
    text = text.replace("y = If", "y, z = If").replace("T[A, B] a)", "T[A, B] a, T[A, B] a)")
    text = text.replace("T[C, D] b)", "T[C, D] b, T[C, D] b)")
    outcome = fuse_model(model(f"{text}\nw = Sub(y, z)", "T[S, 4] x", "T w"))
    x = np.ones((3, 4), np.float32)  # onnxruntime does not take the original
    np.testing.assert_array_equal(session(outcome.after).run(None, {"x": x})[0], 0)


def test_an_unknown_condition_stays():
    text = TAKEN.format(condition="Not(other)")
    outcome = fuse_model(model(text, "T[S, 4] x, bool other"))
    assert outcome.ops.count("If") == 1
    for other in (True, False):
        outcome.same({"S": 3}, other=np.array(other))


def test_what_stands_in_a_taken_branch_is_fused():
    text = """
        flag = Constant<value = bool {1}>()
        y = If (flag) <
            then_branch = yes () => (T[A, B] a) {
                p = MatMul(x, w)
                a = Relu(p)
            },
            else_branch = no () => (T[C, D] b) { b = MatMul(x, w) }
        >
    """
    outcome = fuse_model(model(text, "T[S, 4] x", weights={"w": (4, 6)}))
    assert outcome.counts == {"GemmAct": 1}
    outcome.same({"S": 3})
