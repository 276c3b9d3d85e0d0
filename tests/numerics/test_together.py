"""What ranks hand each other, and how their parts become the whole."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from opfuse.numerics.session import CannotRun
from opfuse.numerics.shares import given, joined
from opfuse.numerics.together import _packed, _unpacked

PARTS = {"past": (1, [np.array([0, 1]), np.array([2, 3])])}


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_arrays_travel_as_they_are(kind):
    arrays = {"a b": np.arange(6).reshape(2, 3).astype(kind), "scalar": np.ones((), kind)}
    found = _unpacked(_packed(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_a_rank_is_given_its_part():
    feeds = {"past": np.arange(8).reshape(2, 4), "ids": np.ones(3)}
    found = given(feeds, PARTS, 1)
    np.testing.assert_array_equal(found["past"], [[2, 3], [6, 7]])
    assert found["past"].flags["C_CONTIGUOUS"]
    assert found["ids"] is feeds["ids"]


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[2, 3], [0, 1]], [[0, 1, 2], [2, 3]]])
def test_parts_become_the_whole_whoever_has_them(parts):
    whole = np.arange(8).reshape(2, 4)
    places = [np.array(part) for part in parts]
    values = [np.take(whole, part, 1) for part in places]
    np.testing.assert_array_equal(joined("past", values, {"past": (1, places)}), whole)


def test_a_part_that_nobody_has():
    places = [np.array([0, 1]), np.array([3])]
    values = [np.zeros((2, 2)), np.zeros((2, 1))]
    with pytest.raises(CannotRun, match="no rank has all of output 'past'"):
        joined("past", values, {"past": (1, places)})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64, ml_dtypes.bfloat16])
def test_a_part_that_two_ranks_have_is_the_same(kind):
    places = [np.array([0, 1]), np.array([1, 2])]
    whole = np.arange(1, 7).reshape(2, 3).astype(kind)
    values = [np.take(whole, part, 1) for part in places]
    np.testing.assert_array_equal(joined("past", values, {"past": (1, places)}), whole)
    values[1][1, 0] += kind(2)
    with pytest.raises(CannotRun, match="do not agree on output 'past': rank 1, "):
        joined("past", values, {"past": (1, places)})
