"""Rope by halves: each half turned by itself and the two put together again."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

SPLIT = "a, b = Split<axis=-1>(x)"
SLICES = """
    a = Slice(x, [0], [3], [3])
    b = Slice(x, [3], [9223372036854775807], [-1], [1])
"""
TURN = """
    ac = Mul(a, cos)
    bs = Mul(b, sin)
    first = Sub(ac, bs)
    bc = Mul(cos, b)
    as = Mul(a, sin)
    second = Add(as, bc)
    y = Concat<axis=-1>(first, second)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})


def rope(text, *, cache="1, 1, S, 3", dtype="float"):
    inputs = f"T[B, 4, S, 6] x, T[{cache}] cos, T[{cache}] sin"
    return fuse_model(model(text, inputs, "T y", {}, dtype, 17))


@pytest.mark.parametrize("parts", [SPLIT, SLICES], ids=["split", "slices"])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_every_spelling_fuses(parts, dtype):
    outcome = rope(parts + TURN, dtype=dtype)
    assert outcome.counts == {"Rope": 1}
    assert outcome.attribute("Rope", "rotary_dim") == 6
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    "text",
    [
        SPLIT + TURN.replace("Sub(ac, bs)", "Sub(bs, ac)"),
        SPLIT + TURN.replace("Sub(ac, bs)", "Add(ac, bs)"),
        SPLIT + TURN.replace("Concat<axis=-1>(first, second)", "Concat<axis=-1>(second, first)"),
        SLICES.replace("[0], [3]", "[1], [4]") + TURN,
    ],
    ids=["minus the other", "both plus", "swapped", "shifted"],
)
def test_what_turns_otherwise_stays(text):
    outcome = rope(text)
    assert outcome.counts == {}
    outcome.same(*SIZES)


def test_parts_in_the_other_order_are_refused():
    outcome = rope(SPLIT + TURN.replace("(first, second)", "(second, first)"))
    outcome.refused("Rope", "y", "its parts stand in the other order")


def test_a_cache_of_unknown_length_is_refused():
    outcome = rope(SPLIT + TURN, cache="1, 1, T, 3")
    outcome.refused("Rope", "y", "does not provably broadcast")


PAIRS = """
    a = Slice(x, [0], [9223372036854775807], [-1], [2])
    b = Slice(x, [1], [9223372036854775807], [-1], [2])
"""
BESIDE = TURN.replace(
    "y = Concat<axis=-1>(first, second)",
    """f = Unsqueeze(first, [4])
    s = Unsqueeze(second, [-1])
    stacked = Concat<axis=-1>(f, s)
    y = Reshape(stacked, [0, 0, -1, 6])""",
)


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("text", "interleaved"),
    [(PAIRS + TURN, 0), (PAIRS + BESIDE, 1), (SLICES + BESIDE, 1), (SPLIT + BESIDE, 1)],
    ids=["pairs to halves", "pairs to pairs", "halves to pairs", "split to pairs"],
)
def test_pairs_on_either_side(text, interleaved, dtype):
    """DeepSeek takes pairs and gives halves."""
    outcome = rope(text, dtype=dtype)
    assert outcome.counts == {"Rope": 1}
    assert outcome.attribute("Rope", "interleaved") == interleaved
    outcome.same(*SIZES)


def test_pairs_out_of_step_are_refused():
    outcome = rope(PAIRS.replace("b = Slice(x, [1]", "b = Slice(x, [0]") + TURN)
    outcome.refused("Rope", "a", "takes 0:9223372036854775807:2 of axis -1, want 1:6:2")
    outcome.same(*SIZES)


@pytest.mark.parametrize("order", ["rest, first, second", "first, second, rest"])
def test_the_rest_of_each_head_in_the_same_concat(order):
    """As an exporter writes two Concats, one behind the other, as one."""
    text = TURN.replace("(first, second)", f"({order})")
    inputs = "T[B, 4, S, 6] x, T[1, 1, S, 3] cos, T[1, 1, S, 3] sin, T[B, 4, S, 5] rest"
    outcome = fuse_model(model(SPLIT + text, inputs, "T y", {}, "float", 17))
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)
