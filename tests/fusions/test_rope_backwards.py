"""Rope by the negative angle: a minus at the other half, or what is turned is subtracted."""

from __future__ import annotations

import pytest

from tests.fusions.test_rope import HALVES, PAIRS, SIZES, TURN, rope

BACK = TURN.replace("minus = Neg(high)", "minus = Neg(low)").replace(
    "(minus, low)", "(high, minus)"
)


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("halves", ["slices", "split"])
@pytest.mark.parametrize("less", [True, False])
@pytest.mark.parametrize("turn", [TURN, BACK], ids=["forth", "back"])
def test_the_negative_angle(turn, less, halves, dtype):
    """nanochat puts the minus to the other half."""
    text = turn.replace("Add(", "Sub(") if less else turn
    outcome = rope(HALVES[halves] + text, dtype=dtype)
    assert outcome.ops == (["Rope"] if (turn is BACK) == less else ["Neg", "Rope"])
    outcome.same(*SIZES)


def test_pairs_by_the_negative_angle():
    text = PAIRS.replace("Neg(odd)", "Neg(even)").replace("(first, second)", "(right, left)")
    text = text.replace("first = ", "left = ").replace(
        "second = Unsqueeze(even", "right = Unsqueeze(odd"
    )
    outcome = rope(text)
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


def test_both_halves_with_a_minus_are_refused():
    text = BACK.replace("(high, minus)", "(other, minus)")
    outcome = rope(HALVES["slices"] + "other = Neg(high)\n" + text)
    assert not outcome.counts.get("Rope")
    outcome.same(*SIZES)


def test_a_sum_of_products_alone_is_not_told_of():
    """Longformer adds the halves of what it lays out anew; nothing in it turns."""
    text = """
        one = Transpose<perm=[0, 1, 2, 3]>(x)
        other = Transpose<perm=[0, 1, 3, 2]>(x)
        back = Transpose<perm=[0, 1, 3, 2]>(other)
        straight = Mul(one, cos)
        across = Mul(back, sin)
        y = Add(straight, across)
    """
    outcome = rope(text)
    assert [miss.kind for miss in outcome.fused.misses] == []
