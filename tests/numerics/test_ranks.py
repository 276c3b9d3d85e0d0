"""Ranks in step: what they exchange, and what is no set of ranks of one model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opfuse.numerics.ranks import Ranks
from opfuse.numerics.session import CannotRun
from opfuse.numerics.whole import Subject
from tests.ranks import cut
from tests.small import model

TEXT = "h = MatMul(x, w)\na = Relu(h)\np = MatMul(a, v)\ny = Add(p, c)\n"
X = {"x": np.ones((2, 6), np.float32)}


@pytest.fixture
def made(tmp_path):
    weights = {"w": (6, 8), "v": (8, 6), "c": (6,)}
    return cut(model(TEXT, "T[S, 6] x", weights=weights), 2, tmp_path)


def subjects(made, *ranks: int) -> list[Subject]:
    return [Subject(made.folder / f"rank{rank}.onnx", made.folder, {}) for rank in ranks]


def test_a_rank_is_missing(made):
    with pytest.raises(CannotRun, match="a collective of 2 runs on 1 ranks"):
        Ranks(subjects(made, 0), {}).run(X)


def test_the_same_rank_twice_gives_other_numbers(made):
    right = made.runner().run(X)["y"]
    wrong = Ranks(subjects(made, 0, 0), {}).run(X)["y"]
    assert not np.allclose(right, wrong)


def test_ranks_of_two_models(made, tmp_path):
    broken = made.ranks[1]
    next(node for node in broken.graph.node if node.op_type == "Add").op_type = "Sub"
    (made.folder / "rank1.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(CannotRun, match="their nodes differ"):
        made.runner()


def test_ranks_that_return_different_numbers(made):
    """A weight behind the sum that only one rank has changed."""
    broken = made.ranks[1]
    tensor = next(t for t in broken.graph.initializer if t.name == "c")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(6, np.float32), "c"))
    (made.folder / "rank1.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(CannotRun, match="do not agree on output 'y'"):
        made.runner().run(X)


def test_parts_that_are_not_all(made):
    runner = Ranks(subjects(made, 0, 1), {"y": (1, [np.arange(3), np.arange(4, 7)])})
    with pytest.raises(CannotRun, match="no rank has all of output 'y'"):
        runner.run(X)
