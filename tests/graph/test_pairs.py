"""Parts are taken from what they are parts of, and the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 5})
PAIRS = "p = Reshape(x, [0, 4, 3, 2])\n"


def simplified(text: str, outputs: str = "T y", **weights):
    return fuse_model(model(text, "T[S, 4, 6] x, T[S, 4, 2] z", outputs, weights))


@pytest.mark.parametrize(("start", "end"), [("0", "1"), ("1", "2"), ("-1", "9"), ("-2", "-1")])
def test_one_of_each_pair_is_every_second(start, end):
    text = f"s = Slice(p, [{start}], [{end}], [-1])\nt = Squeeze(s, [3])\ny = Neg(t)"
    outcome = simplified(PAIRS + text)
    assert outcome.ops == ["Slice", "Neg"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("text", ["s = Slice(p, [0], [2], [-1])", "s = Slice(p, [0], [1], [2])"])
def test_other_slices_of_pairs_stay(text):
    outcome = simplified(PAIRS + text + "\ny = Neg(s)")
    assert "Reshape" in outcome.ops
    outcome.same(*SIZES)


def test_pairs_across_rows_stay():
    text = "p = Reshape(x, [-1, 2, 6, 2])\ns = Slice(p, [0], [1], [-1])\ny = Neg(s)"
    outcome = simplified(text)
    assert "Reshape" in outcome.ops
    outcome.same(*SIZES)


def test_a_split_of_a_concat_gives_its_parts():
    text = "c = Concat<axis=-1>(x, z)\na, b = Split<axis=2>(c, [6, 2])\ny = Neg(a)\nw = Neg(b)"
    outcome = simplified(text, "T y, T w")
    assert outcome.ops == ["Neg", "Neg"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("sizes", ["[4, 4]", "[2, 6]"])
def test_a_split_elsewhere_stays(sizes):
    text = f"c = Concat<axis=-1>(x, z)\na, b = Split<axis=2>(c, {sizes})\ny = Neg(a)\nw = Neg(b)"
    outcome = simplified(text, "T y, T w")
    assert outcome.ops == ["Concat", "Split", "Neg", "Neg"]
    outcome.same(*SIZES)


def test_a_constant_is_split_ahead_of_time():
    """The biases of q, k, and v, which torch's own attention has in one tensor."""
    text = "a, b = Split<axis=0>(both, [6, 6])\ns = Add(x, a)\ny = Mul(s, b)"
    outcome = simplified(text, both=np.arange(12, dtype=np.float32))
    assert outcome.ops == ["Add", "Mul"]
    outcome.same(*SIZES)
