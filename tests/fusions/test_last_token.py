"""A selection of positions moves in front of the projection that it selects from."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small import fuse_model, model

KIND = "last_token_gather"
SIZES = ({"B": 2, "S": 3}, {"B": 1, "S": 1})
END = 9223372036854775807
WEIGHTS = {"w": (16, 40), "b": (40,), "last": np.array(-1), "two": np.array([0, -1])}
HEAD = "product = MatMul(x, w)\nlogits = Add(product, b)\n"


def head(text: str, outputs: str = "T y", inputs: str = "", dtype: str = "float"):
    return fuse_model(model(text, f"T[B, S, 16] x{inputs}", outputs, WEIGHTS, dtype))


SELECTIONS = {
    "the last": "y = Gather<axis=1>(logits, last)",
    "by a negative axis": "y = Gather<axis=-2>(logits, last)",
    "two": "y = Gather<axis=1>(logits, two)",
    "a slice": f"y = Slice(logits, [-1], [{END}], [1])",
    "a slice of three": f"y = Slice(logits, [-3], [{END}], [-2], [1])",
    "the first": "y = Slice(logits, [0], [1], [1])",
    "the last but one": "y = Slice(logits, [-2], [-1], [1])",
    "behind a cap": """
        ratio = Div(logits, 30.0)
        bent = Tanh(ratio)
        capped = Mul(bent, 30.0)
        y = Gather<axis=1>(capped, last)
    """,
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_it_moves(case):
    outcome = head(HEAD + SELECTIONS[case])
    assert outcome.counts == {KIND: 1}
    assert outcome.ops[:3] == [outcome.ops[0], "MatMul", "Add"]
    assert outcome.ops[0] in ("Gather", "Slice")
    outcome.same(*SIZES)


def test_behind_a_cast():
    text = HEAD + "wide = Cast<to=1>(logits)\ny = Gather<axis=1>(wide, last)"
    outcome = head(text, "float y", dtype="float16")
    assert outcome.ops == ["Gather", "MatMul", "Add", "Cast"]
    outcome.same(*SIZES)


STAY = {
    "features": "y = Gather<axis=2>(logits, last)",
    "a slice of features": f"y = Slice(logits, [-1], [{END}], [-1])",
    "all but the first": f"y = Slice(logits, [1], [{END}], [1])",
    "all but the last": "y = Slice(logits, [0], [-1], [1])",
    "every second": f"y = Slice(logits, [0], [{END}], [1], [2])",
    "positions and features": f"y = Slice(logits, [-1, 0], [{END}, 3], [1, 2])",
    "from both ends": "y = Slice(logits, [-3], [2], [1])",
    "what is not a layer": "n = Neg(logits)\ny = Gather<axis=1>(n, last)",
    "a factor of each feature": "n = Mul(logits, b)\ny = Gather<axis=1>(n, last)",
}


@pytest.mark.parametrize("case", STAY)
def test_it_stays(case):
    outcome = head(HEAD + STAY[case])
    assert outcome.counts == {}
    assert outcome.fused.misses == ()
    outcome.same({"B": 2, "S": 4})


def test_a_number_of_positions_that_is_not_known_stays():
    outcome = head(HEAD + "y = Gather<axis=1>(logits, picked)", inputs=", int64[K] picked")
    assert outcome.counts == {}
    outcome.same({"B": 2, "S": 4, "K": 6})


def test_logits_that_leave_the_graph_are_refused():
    outcome = head(HEAD + SELECTIONS["the last"], "T y, T logits")
    outcome.refused(KIND, "logits", "logits inside it leaves the graph")
    outcome.same(*SIZES)


def test_logits_that_are_read_elsewhere_are_refused():
    outcome = head(HEAD + SELECTIONS["the last"] + "\nz = Neg(logits)", "T y, T z")
    outcome.refused(KIND, "z", "logits inside it is also read by")
    outcome.same(*SIZES)
