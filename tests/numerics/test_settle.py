"""What decides where rounding makes two right forms differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opfuse.numerics.extract import build
from opfuse.numerics.prover import judge
from tests.matches import constant, opsets
from tests.numerics.test_prover import ATTENTION, TYPES, attention

FLASH = """
q_wide = Cast<to: int = 1>(q)
q_product = Mul(q_wide, factor)
q_scaled = CastLike(q_product, q)
keys = Transpose<perm: ints = [0, 1, 3, 2]>(k)
scores = MatMul(q_scaled, keys)
masked = Add(scores, mask)
logits = Cast<to: int = 1>(masked)
weights32 = Softmax<axis: int = -1>(logits)
weights = CastLike(weights32, q)
y = MatMul(weights, v)
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wrong", [1.0, 1.2], ids=["right", "wrong"])
def test_no_draw_of_a_saturated_softmax_decides_otherwise(dtype, wrong):
    """The last bits of its scores do: either form may be the one that is lucky."""
    scale = np.asarray(0.35, TYPES[dtype])
    given = [constant("third", scale, TYPES[dtype]), constant("factor", float(scale) * wrong)]
    before = ATTENTION.replace("scale)", "third)")
    subject = build(attention(dtype, before, FLASH, extra=given), opsets(), Path())
    for seed in range(25):
        assert bool(judge(subject, seed).reason) == (wrong != 1.0), seed
