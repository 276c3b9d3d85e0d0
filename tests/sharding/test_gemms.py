"""Gemms that the normal form leaves: their weight would have to be turned, and has two readers."""

from __future__ import annotations

import onnx
import pytest

import opfuse
from opfuse.errors import InputError
from tests.ranks import cut
from tests.small import model

ROWS = ({"S": 5}, {"S": 1})
WEIGHTS = {"w": (8, 6), "b": (8,), "v": (6, 8), "c": (6,)}
LAYER = "h{0} = Gemm<transB=1>({1}, w, b)\na{0} = Sigmoid(h{0})\n"
TWICE = LAYER.format(1, "x") + "y1 = Gemm<transB=1>(a1, v, c)\n"
TWICE += LAYER.format(2, "y1") + "y = Gemm<transB=1>(a2, v{})\n"


@pytest.mark.parametrize("bias", [", c", ""])
def test_a_turned_weight_that_two_layers_share(tmp_path, bias):
    made = cut(model(TWICE.format(bias), "T[S, 6] x", weights=WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 4)), ("row", (4, 6))] * 2
    assert made.reasons() == []
    assert [weight.shape for weight in made.weights("w")] == [(4, 6)] * 2


@pytest.mark.parametrize("factor", ["alpha=2.0", "beta=2.0", "transA=1"])
def test_one_that_scales_or_turns_what_it_reads_stays(tmp_path, factor):
    text = f"h = MatMul(x, u)\na = Relu(h)\ny = Gemm<{factor}>(a, v, c)\n"
    weights = {"u": (6, 8), "v": (8, 6) if "A" not in factor else (6, 6), "c": (6,)}
    before = model(text, "T[6, 6] x", weights=weights)
    with pytest.raises(InputError, match="it scales or turns what it reads"):
        cut(before, 2, tmp_path)


def test_a_turned_weight_beside_the_model(tmp_path):
    """It is not read to be turned: each rank's part comes from the file."""
    text = "h = Gemm<transB=1>(x, w, b)\na = Sigmoid(h)\ny = Gemm<transB=1>(a, v, c)\n"
    path = tmp_path / "m.onnx"
    onnx.save_model(
        model(text, "T[S, 6] x", weights=WEIGHTS),
        path,
        save_as_external_data=True,
        size_threshold=0,
    )
    shards = opfuse.shard(path, tmp_path / "r", 2)
    assert shards.proof is not None
    assert shards.proof.passed
    assert [item.how for item in shards.plan.products] == ["column", "row"]
