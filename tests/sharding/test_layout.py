"""Parts of tensors: what a reshape makes of them, with NumPy as the judge."""

from __future__ import annotations

import numpy as np
import pytest

from opfuse.graph.dims import symbol
from opfuse.sharding.layout import Shard, Stays, even, reshaped

B, S, T = symbol("batch"), symbol("seq"), symbol("tokens")


def parts(*ranks: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(rank) for rank in ranks)


def test_equal_blocks_go_to_the_ranks_in_order():
    shard = even(1, 8, 4)
    assert [list(part) for part in shard.parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert (shard.axis, shard.local) == (1, 2)
    with pytest.raises(Stays, match="6 do not divide among 4 ranks"):
        even(0, 6, 4)


@pytest.mark.parametrize(
    ("axis", "ranks", "old", "new"),
    [
        (1, [[0, 1], [2, 3]], (3, 4, 5), (3, 20)),  # heads are merged
        (1, [[0, 1, 2, 3], [4, 5, 6, 7]], (3, 8), (3, 4, 2)),  # and split
        (1, [[2], [0]], (3, 4, 5), (3, 20)),  # in any order
        (1, [[0, 1], [0, 1]], (3, 4, 5), (3, 20)),  # and twice
        (1, [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]], (2, 12), (2, 3, 2, 2)),  # packed
        (2, [[0], [1]], (1, 3, 2, 2), (3, 4)),
        (0, [[0], [1]], (2, 1, 3), (2, 3)),
        (1, [[0], [1]], (3, 2), (3, 2, 1)),
        (1, [[0], [1]], (3, 2, 1), (3, 2)),
        (1, [[0], [1]], (1, 2, 3), (2, 3)),
        (0, [[0], [1]], (2, 3), (1, 2, 1, 3)),
    ],
)
def test_a_part_of_the_reshaped_is_the_reshaped_part(axis, ranks, old, new):
    shard = Shard(axis, parts(*ranks))
    result = reshaped(shard, old, new)
    whole = np.arange(np.prod(old)).reshape(old)
    for part, mine in zip(shard.parts, result.parts, strict=True):
        want = np.take(whole.reshape(new), mine, result.axis)
        have = np.take(whole, part, axis)
        assert np.array_equal(have.reshape(want.shape), want)


def test_every_small_reshape_is_right_or_refused():
    """All parts of all axes of all factorings of 24: whatever passes is what NumPy says."""
    shapes = [(24,), (2, 12), (4, 6), (6, 4), (2, 3, 4), (3, 2, 4), (2, 2, 6), (2, 2, 2, 3)]
    passed = 0
    for old in shapes:
        for new in shapes:
            for axis, size in enumerate(old):
                for count in (2, 3):
                    if size % count:
                        continue
                    shard = even(axis, size, count)
                    try:
                        result = reshaped(shard, old, new)
                    except Stays:
                        continue
                    passed += 1
                    whole = np.arange(24).reshape(old)
                    for part, mine in zip(shard.parts, result.parts, strict=True):
                        want = np.take(whole.reshape(new), mine, result.axis)
                        assert np.array_equal(np.take(whole, part, axis).ravel(), want.ravel())
    assert passed > 100


def test_symbolic_axes_in_front_are_found_by_their_product():
    shard = Shard(2, parts([0, 1], [2, 3]))
    assert reshaped(shard, (B, S, 4, 16), (B * S, 64)).axis == 1
    assert reshaped(Shard(1, parts([0], [1])), (B * S, 2), (B, S, 2)).axis == 2


@pytest.mark.parametrize(
    ("axis", "old", "new", "found"),
    [
        (2, (B, S, 4), (B, T, 2, 2), 2),
        (2, (B, S, 4), (T, 2, 2), 1),
        (3, (B, S, 2, 4), (B, T, 1, 8), 3),
        (2, (B, S, 4), (B, T, 4, 1), 2),
        (2, (B, S, 4, 1), (B, T, 2, 2), 2),
        (1, (B, 4, S, 3), (B, 2, 2, T, 3), 1),
    ],
)
def test_an_axis_behind_one_that_has_another_name_there(axis, old, new, found):
    """The shape was computed in another way, and the model runs: both are the same size."""
    size = old[axis]
    shard = even(axis, size, 2)
    result = reshaped(shard, old, new)
    assert result.axis == found
    sizes = {B: 2, S: 3, T: 6 if len(new) < len(old) or new[0] is T else 3}
    before, behind = ([sizes.get(dim, dim) for dim in shape] for shape in (old, new))
    whole = np.arange(np.prod(before)).reshape(before)
    for part, mine in zip(shard.parts, result.parts, strict=True):
        want = np.take(whole.reshape(behind), mine, result.axis)
        assert np.array_equal(np.take(whole, part, axis).ravel(), want.ravel())


@pytest.mark.parametrize(
    ("axis", "ranks", "old", "new", "reason"),
    [
        (1, [[0, 1], [2, 3]], (2, 4), (2, 2, 2), None),
        (1, [[0], [1], [2], [3]], (2, 4), (2, 2, 2), "cut through 2 x 2"),
        (1, [[0, 2], [1, 3]], (2, 4), (2, 2, 2), None),  # the pairs' halves
        (1, [[0, 3], [1, 2]], (2, 4), (2, 2, 2), "cut through"),
        (1, [[0], [1]], (S, 2), (2, S), "no fixed number"),
        (0, [[0], [1]], (2, S), (2 * S,), "no fixed number"),
        (0, [[0], [1]], (2, S), (B,), "no fixed number"),
        (1, [[0], [1]], (B, 2, S), (B, T), "no fixed number"),
    ],
)
def test_what_is_no_part_of_one_axis_is_refused(axis, ranks, old, new, reason):
    shard = Shard(axis, parts(*ranks))
    if reason is None:
        reshaped(shard, old, new)
        return
    with pytest.raises(Stays, match=reason):
        reshaped(shard, old, new)


def test_all_of_an_axis():
    assert Shard(0, parts([0, 1], [0, 1])).complete(2)
    assert not Shard(0, parts([0, 1], [0, 1])).complete(3)
    assert not Shard(0, parts([1, 0], [1, 0])).complete(2)
    assert not Shard(0, parts([0, 1], [0, 1])).complete(S)
