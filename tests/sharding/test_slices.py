"""Weights of several parts whose products are taken apart by slices and entries."""

from __future__ import annotations

import numpy as np
import pytest

from opfuse.errors import InputError
from tests.ranks import cut
from tests.sharding.blocks import block
from tests.small import model

ROWS = ({"B": 2, "S": 5}, {"B": 1, "S": 1})
MLP = "h = MatMul(x, w)\na = Relu(h)\ny = MatMul(a, v)\n"
MLP_WEIGHTS = {"w": (6, 8), "v": (8, 6)}


def test_slices_of_a_packed_weight_are_cut_each(tmp_path):
    split = "".join(
        f"{x}p = Slice(qkv, [{start}], [{stop}], [2])\n{x}4 = Reshape({x}p, [0, 0, {heads}, 4])\n"
        for x, start, stop, heads in (("q", 0, 16, 4), ("k", 16, 24, 2), ("v", 24, 32, 2))
    )
    made = cut(model(**block(4, 2, split=split)), 2, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 16)), ("row", (8, 6))]


ENTRIES = {
    "a list of one index": "k4 = Gather<axis=2>(heads, [4])\nv4 = Gather<axis=2>(heads, [-1])\n",
    "as PyTorch's exporter writes it": (
        "turned = Transpose<perm=[2, 1, 0, 3]>(heads)\n"
        "kt4 = GatherND(turned, first)\nvt4 = GatherND(turned, last)\n"
        "k4 = Transpose<perm=[2, 1, 0, 3]>(kt4)\nv4 = Transpose<perm=[2, 1, 0, 3]>(vt4)\n"
    ),
}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("entries", ENTRIES)
def test_one_key_head_taken_out_of_a_packed_weight(tmp_path, entries, ranks):
    split = "heads = Reshape(qkv, [0, 0, 6, 4])\nq4 = Slice(heads, [0], [4], [2])\n"
    case = block(4, 1, split=split + ENTRIES[entries])
    case["weights"] |= {"first": np.array([[-2]]), "last": np.array([[5]])}
    made = cut(model(**case), ranks, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 16 // ranks + 8)), ("row", (16 // ranks, 6))]
    assert made.reasons() == []


def test_heads_that_are_transposed_and_returned_stay(tmp_path):
    """Each entry has its own Transpose, which a GatherND and the caller read."""
    split = "heads = Reshape(qkv, [0, 0, 6, 4])\nq4 = Slice(heads, [0], [4], [2])\n"
    split += (
        "kturned = Transpose<perm=[2, 1, 0, 3]>(heads)\nkt4 = GatherND(kturned, first)\n"
        "vturned = Transpose<perm=[2, 1, 0, 3]>(heads)\nvt4 = GatherND(vturned, last)\n"
        "k4 = Transpose<perm=[2, 1, 0, 3]>(kt4)\nv4 = Transpose<perm=[2, 1, 0, 3]>(vt4)\n"
    )
    case = block(4, 1, split=split)
    case["weights"] |= {"first": np.array([[-2]]), "last": np.array([[5]])}
    case["text"] += "h = MatMul(y, u)\na = Relu(h)\nz = MatMul(a, t)\n"
    case["weights"] |= {"u": (6, 8), "t": (8, 6)}
    made = cut(model(**case, outputs="T z, T kturned"), 2, tmp_path)
    made.same(*ROWS)
    assert ("column", (6, 4)) in made.products()


@pytest.mark.parametrize(
    "entries",
    [
        "k4 = Gather<axis=2>(heads, [4])\nv4 = Gather<axis=2>(heads, [4])\n",
        "k4 = Gather<axis=2>(heads, [3])\nv4 = Gather<axis=2>(heads, [5])\n",
    ],
    ids=["twice", "one of the queries"],
)
def test_entries_that_are_not_all_of_the_axis_stay_what_they_are(tmp_path, entries):
    split = "heads = Reshape(qkv, [0, 0, 6, 4])\nq4 = Slice(heads, [0], [4], [2])\n"
    with pytest.raises(InputError, match="nothing in it can be split"):
        cut(model(**block(4, 1, split=split + entries)), 2, tmp_path)


def test_slices_that_overlap_stay_what_they_are(tmp_path):
    text = MLP.replace(
        "y = MatMul(a, v)", "f = Slice(a, [0], [5], [2])\ng = Slice(a, [4], [8], [2])"
    )
    text += "fs = ReduceSum<keepdims=1>(f, [2])\ngs = ReduceSum<keepdims=1>(g, [2])\n"
    text += "y = Sub(fs, gs)\n"
    with pytest.raises(InputError, match="nothing in it can be split"):
        cut(model(text, "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
