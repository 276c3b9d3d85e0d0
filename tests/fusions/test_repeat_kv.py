"""Grouped-query attention: copies of key/value heads are dropped where they are copies in place."""

from __future__ import annotations

import pytest

from tests.small import fuse_model, model

SIZES = ({"B": 2, "Q": 5, "K": 5}, {"B": 1, "Q": 1, "K": 7}, {"B": 3, "Q": 4, "K": 1})
ATTENTION = """
    kt = Transpose<perm=[0, 1, 3, 2]>(keys)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.25)
    weights = Softmax<axis=-1>(scores)
    y = MatMul(weights, values)
"""
SPELLINGS = {
    "by shape": """
        {y}_5 = Unsqueeze({x}, [2])
        {y}_s = Shape({x})
        {y}_b = Slice({y}_s, [0], [1], [0])
        {y}_n = Slice({y}_s, [2], [3], [0])
        {y}_w = Concat<axis=0>({y}_b, [KV], [GROUP], {y}_n, [6])
        {y}_c = Expand({y}_5, {y}_w)
        {y}_f = Concat<axis=0>({y}_b, [HEADS], {y}_n, [6])
        {y} = Reshape({y}_c, {y}_f)""",
    "by ones": """
        {y}_5 = Unsqueeze({x}, [2])
        {y}_c = Expand({y}_5, [1, 1, GROUP, 1, 1])
        {y}_s = Shape({x})
        {y}_b = Slice({y}_s, [0], [1], [0])
        {y}_n = Slice({y}_s, [2], [3], [0])
        {y}_f = Concat<axis=0>({y}_b, [HEADS], {y}_n, [6])
        {y} = Reshape({y}_c, {y}_f)""",
}
SPELLINGS["by tile"] = SPELLINGS["by ones"].replace("Expand", "Tile")


def repeated(text: str, x: str, y: str, kv: int, group: int) -> str:
    """The statements that copy the ``kv`` heads of ``x`` ``group`` times into ``y``."""
    text = text.replace("{x}", x).replace("{y}", y).replace("KV", str(kv))
    return text.replace("GROUP", str(group)).replace("HEADS", str(kv * group)) + "\n"


def grouped(text: str, kv=2, group=2, value=None, dtype="float", outputs="T y"):
    value_kv, value_group = value or (kv, group)
    text = repeated(text, "k", "keys", kv, group) + repeated(
        text, "v", "values", value_kv, value_group
    )
    inputs = f"T[B, {kv * group}, Q, 6] q, T[B, {kv}, K, 6] k, T[B, {value_kv}, K, 6] v"
    return fuse_model(model(text + ATTENTION, inputs, outputs, dtype=dtype))


@pytest.mark.parametrize(("kv", "group"), [(2, 2), (1, 4), (2, 3), (4, 1)])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_fuses(spelling, kv, group):
    outcome = grouped(SPELLINGS[spelling], kv, group)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "num_heads") == kv * group
    assert outcome.attribute("FlashAttention", "kv_num_heads") == kv
    outcome.same(*SIZES)


def test_fp16():
    outcome = grouped(SPELLINGS["by shape"], 2, 3, dtype="float16")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(("kv", "group"), [(2, 2), (3, 3), (2, 3)])
def test_tiled_heads_are_no_repeated_heads(kv, group):
    """[k0, k1, k0, k1] serves other queries than [k0, k0, k1, k1]."""
    tiled = SPELLINGS["by ones"].replace("({x}, [2])", "({x}, [1])")
    tiled = tiled.replace("1, 1, GROUP", "1, GROUP, 1")
    outcome = grouped(tiled, kv, group)
    assert outcome.attribute("FlashAttention", "kv_num_heads") == kv * group
    assert "Expand" in outcome.ops
    outcome.same(*SIZES)


def test_unequal_key_and_value_heads_keep_their_copies():
    outcome = grouped(SPELLINGS["by shape"], 2, 2, value=(1, 4))
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 4
    outcome.same(*SIZES)


def test_copies_that_are_read_elsewhere_are_still_dropped_here():
    outcome = grouped(SPELLINGS["by shape"], outputs="T y, T keys")
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_expanding_keys_is_no_copy_of_heads():
    """[batch, heads, 1, 1, size] widened along the keys."""
    text = """
        {y}_5 = Unsqueeze({x}, [2])
        {y}_c = Expand({y}_5, [1, 1, GROUP, 3, 1])
        {y} = Reshape({y}_c, [0, HEADS, 3, 6])"""
    keys, values = (repeated(text, x, y, 2, 2) for x, y in (("k", "keys"), ("v", "values")))
    inputs = "T[B, 4, Q, 6] q, T[B, 2, 1, 6] k, T[B, 2, 1, 6] v"
    outcome = fuse_model(model(keys + values + ATTENTION, inputs))
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 4
    outcome.same(*SIZES)
