"""onnxruntime's GroupQueryAttention fuses with its cache, its rotation, and its mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opfuse.config import Config
from opfuse.progress import Progress
from opfuse.stages.fuse import export, fuse
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise
from opfuse.stages.prove import prove
from tests.small import fuse_model, model

HEADS, KV_HEADS, SIZE = 4, 2, 32
Q = f"T[B, S, {HEADS * SIZE}] q"
KV = f"T[B, S, {KV_HEADS * SIZE}] k, T[B, S, {KV_HEADS * SIZE}] v"
CACHE = f"T[B, {KV_HEADS}, P, {SIZE}] pk, T[B, {KV_HEADS}, P, {SIZE}] pv"
LENGTHS = "int32[B] lengths, int32[1] total"
OUTPUTS = f"T[B, S, {HEADS * SIZE}] y, T[B, 2, N, {SIZE}] nk, T[B, 2, N, {SIZE}] nv"
FLAGS = {
    "plain": "",
    "rotated": ", do_rotary=1",
    "rotated in pairs": ", do_rotary=1, rotary_interleaved=1",
    "a window": ", local_window_size=3",
    "a scale": ", scale=0.2",
    "a softcap": ", softcap=5.0",
}


def fused(flags="", operands="q, k, v, pk, pv, lengths, total", inputs=None, last="", width=16):
    if "do_rotary" in flags:
        last = ", c, s" + last
    elif last:
        last = ", , " + last
    text = (
        f"y, nk, nv = com.microsoft.GroupQueryAttention<num_heads={HEADS}, "
        f"kv_num_heads={KV_HEADS}{flags}>({operands}{last})"
    )
    weights = {"c": (16, width), "s": (16, width)} if "do_rotary" in flags else {}
    made = model(text, inputs or f"{Q}, {KV}, {CACHE}, {LENGTHS}", OUTPUTS, weights)
    outcome = fuse_model(made)
    assert outcome.counts["FlashAttention"] == 1, outcome.fused.misses
    assert outcome.attribute("FlashAttention", "kv_num_heads") == KV_HEADS
    return outcome


def lengths(*known, total):
    return {
        "lengths": np.array([length - 1 for length in known], np.int32),
        "total": np.array([total], np.int32),
    }


@pytest.mark.parametrize("case", FLAGS)
def test_a_token_after_a_cache(case):
    outcome = fused(FLAGS[case])
    outcome.same({"B": 2, "S": 1, "P": 5}, **lengths(6, 6, total=6))
    outcome.same({"B": 1, "S": 1, "P": 1}, **lengths(2, total=2))


@pytest.mark.parametrize("case", FLAGS)
def test_several_tokens_after_a_cache(case):
    fused(FLAGS[case]).same({"B": 1, "S": 3, "P": 5}, **lengths(8, total=8))


@pytest.mark.parametrize("case", FLAGS)
def test_a_prompt(case):
    outcome = fused(FLAGS[case])
    outcome.same({"B": 2, "S": 5, "P": 0}, pk=empty(2), pv=empty(2), **lengths(5, 5, total=5))


def empty(batch):
    return np.zeros((batch, KV_HEADS, 0, SIZE), np.float32)


def test_a_cache_that_is_longer_than_what_it_holds():
    fused(FLAGS["rotated"]).same({"B": 1, "S": 1, "P": 9}, **lengths(4, total=4))


def test_a_bias_of_fewer_keys_than_the_cache():
    inputs = f"{Q}, {KV}, {CACHE}, {LENGTHS}, T[1, {HEADS}, S, W] bias"
    outcome = fused(inputs=inputs, last=", , bias")
    outcome.same({"B": 1, "S": 1, "P": 9, "W": 4}, **lengths(4, total=4))
    outcome.same({"B": 1, "S": 1, "P": 4, "W": 5}, **lengths(5, total=5))


def test_lengths_that_differ():
    outcome = fused(FLAGS["rotated"])
    outcome.same({"B": 2, "S": 1, "P": 6}, **lengths(4, 7, total=7))


def test_no_cache():
    inputs = f"{Q}, {KV}, {LENGTHS}"
    outcome = fused(operands="q, k, v, , , lengths, total", inputs=inputs)
    outcome.same({"B": 2, "S": 5}, **lengths(5, 5, total=5))


def test_projections_in_one_tensor():
    packed = f"T[B, S, {(HEADS + 2 * KV_HEADS) * SIZE}] q"
    outcome = fused(
        FLAGS["rotated"], "q, , , pk, pv, lengths, total", f"{packed}, {CACHE}, {LENGTHS}"
    )
    outcome.same({"B": 2, "S": 1, "P": 5}, **lengths(6, 6, total=6))


def test_projections_of_one_tensor_are_merged():
    """Two of them are behind what is put into the cache."""
    text = f"""
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        y, nk, nv = com.microsoft.GroupQueryAttention<num_heads={HEADS}, kv_num_heads={KV_HEADS}>(
            q, k, v, pk, pv, lengths, total)
    """
    heads = {"wq": HEADS, "wk": KV_HEADS, "wv": KV_HEADS}
    weights = {name: (32, count * SIZE) for name, count in heads.items()}
    outcome = fuse_model(model(text, f"T[B, S, 32] x, {CACHE}, {LENGTHS}", OUTPUTS, weights))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same({"B": 2, "S": 1, "P": 5}, **lengths(6, 6, total=6))


def test_a_part_of_each_head_turns():
    outcome = fused(FLAGS["rotated"], width=8)
    outcome.same({"B": 1, "S": 1, "P": 5}, **lengths(6, total=6))


FROM_MASK = """
    sums = ReduceSum<keepdims=0>(mask, [1])
    last = Sub(sums, one)
    lengths = Cast<to=6>(last)
    size = Shape<start=1, end=2>(mask)
    total = Cast<to=6>(size)
    y, nk, nv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>(
        q, k, v, pk, pv, lengths, total, c, s)
"""


@pytest.mark.parametrize(("name", "totals"), [("total_length", (7, 4)), ("N", (7, 4)), ("P", (6,))])
def test_heads_stay_shared_whatever_the_keys_are_called(name, totals):
    """The cache's output is named after the mask, than which it is longer where it has room."""
    weights = {"one": np.array(1), "c": (64, 16), "s": (64, 16)}
    outcome = fuse_model(
        model(FROM_MASK, f"{Q}, {KV}, {CACHE}, int64[B, {name}] mask", OUTPUTS, weights),
        library={"FlashAttention"},
    )
    assert outcome.attribute("FlashAttention", "kv_num_heads") == KV_HEADS
    assert outcome.attribute("FlashAttention", "lengths") == 1
    for total in totals:
        mask = (np.arange(total) < np.array([[3], [total]])).astype(np.int64)
        outcome.same({"B": 2, "S": 1, "P": 6, name: total}, mask=mask)


@pytest.mark.parametrize("lengths", ["mask", "inputs"])
def test_such_a_model_is_proven_whole(lengths):
    """Its numbers of keys have to agree with its cache, and padded rows are not specified."""
    if lengths == "mask":
        inputs = f"{Q}, {KV}, {CACHE}, int64[B, total_length] mask"
        weights = {"one": np.array(1), "c": (64, 16), "s": (64, 16)}
        made = model(FROM_MASK, inputs, OUTPUTS, weights)
    else:
        made = fused().before
    source = Source(Path("model.onnx"), made, Path())
    found = fuse(normalise(source))
    config = Config(Path("model.onnx"))
    after = export(found, source)
    proof = prove(source, after, found.graph, found.matches, config, Progress())
    assert not proof.failed
    assert proof.whole.passed
    assert not proof.whole.not_run


LEFT = {
    "positions": (", do_rotary=1", "c, s, p", "takes its positions from outside"),
    "a sink": ("", ", , , , sink", "has input 11, sink"),
    "quantised": (", kv_cache_bit_width=8", "", "has kv_cache_bit_width=8"),
    "not causal": (", causal=0", "", "has causal=0"),
    "a window of nothing": (", local_window_size=0", "", "has a window of no keys"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_its_reason(case):
    flags, last, reason = LEFT[case]
    inputs = f"{Q}, {KV}, {CACHE}, {LENGTHS}, T[16, 4] c, T[16, 4] s, int64[B, S] p, T[4] sink"
    text = (
        f"y, nk, nv = com.microsoft.GroupQueryAttention<num_heads={HEADS}, "
        f"kv_num_heads={KV_HEADS}{flags}>(q, k, v, pk, pv, lengths, total, {last})"
    )
    outcome = fuse_model(model(text.replace(", )", ")"), inputs, OUTPUTS))
    outcome.refused("FlashAttention", "y", reason)
