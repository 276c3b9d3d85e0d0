"""The memory plan: nothing that lives at the same time overlaps, and little is wasted."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from opfuse.runtime.memory import ALIGNMENT, Life, busiest, place, rounded, unshared

STEPS = 12


@st.composite
def lives(draw):
    count = draw(st.integers(0, 24))
    found = []
    for index in range(count):
        first = draw(st.integers(-1, STEPS))
        last = draw(st.integers(first, STEPS))
        found.append(Life(f"t{index}", draw(st.integers(0, 5000)), first, last))
    return found


@given(lives())
def test_what_lives_at_the_same_time_does_not_overlap(blocks):
    plan = place(blocks)
    assert set(plan.offsets) == {life.name for life in blocks}
    for a, b in combinations(blocks, 2):
        if a.meets(b) and a.bytes and b.bytes:
            first, second = sorted((a, b), key=lambda life: plan.offsets[life.name])
            assert plan.offsets[first.name] + first.bytes <= plan.offsets[second.name]
    for life in blocks:
        assert plan.offsets[life.name] % ALIGNMENT == 0
        assert plan.offsets[life.name] + life.bytes <= plan.bytes


@given(lives())
def test_the_plan_takes_no_less_than_the_busiest_step_and_no_more_than_all(blocks):
    assert busiest(blocks) <= place(blocks).bytes <= unshared(blocks)


@given(lives())
def test_the_order_in_which_blocks_are_told_does_not_matter(blocks):
    assert place(blocks) == place(blocks[::-1])


def test_a_chain_needs_two_places():
    """Each step reads what the one before has written, and nothing older."""
    chain = [Life(f"t{index}", 1000, index, index + 1) for index in range(10)]
    assert place(chain).bytes == 2 * rounded(1000) == busiest(chain)


def test_a_residual_keeps_its_place_while_others_come_and_go():
    residual = Life("residual", 4096, 0, 4)
    steps = [Life(f"t{index}", 4096, index, index) for index in range(5)]
    plan = place([residual, *steps])
    assert plan.bytes == 2 * 4096
    assert len({plan.offsets[life.name] for life in steps}) == 1


def test_scratch_of_a_step_may_lie_where_a_dead_tensor_was():
    dead = Life("dead", 2048, 0, 0)
    scratch = Life(3, 2048, 3, 3)
    assert place([dead, scratch]).bytes == 2048


def test_no_blocks_take_no_memory():
    assert place([]).bytes == 0
