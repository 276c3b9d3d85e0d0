"""Keys of which each batch has its own number: the standard Attention's nonpad_kv_seqlen."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from opfuse.config import Config
from opfuse.fusions import DEFINITIONS
from opfuse.numerics import roles
from opfuse.progress import Progress
from opfuse.stages.fuse import export, fuse
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise
from opfuse.stages.prove import prove
from tests.small import compare, draw, fuse_model, model, session

QKV = "T[B, 4, Q, 6] q, T[B, 2, K, 6] k, T[B, 2, K, 6] v, int64[B] n"
BY_SIDE = "T[B, Q, 24] q, T[B, K, 12] k, T[B, K, 12] v, int64[B] n"
SIZES = ((5, 5), (1, 7), (3, 9), (6, 4))  # queries, keys
SEEN = {
    "": (False, -1),
    "is_causal=1": (True, -1),
    "is_causal=1, left_window_size=2": (True, 2),
    "left_window_size=2, right_window_size=2": (False, 2),
    "left_window_size=1, right_window_size=0": (True, 1),
}
OPSET = onnx.defs.onnx_opset_version()
HAS_WINDOWS = pytest.mark.skipif(OPSET < 25, reason="onnx has no opset 25")


def fused(attributes="", inputs=QKV, mask="", more="", opset=24):
    """One Attention; windows need opset 25."""
    opset = 25 if "window" in attributes else opset
    text = f"y = Attention<{attributes}>(q, k, v, {mask}, , , n)".replace("<>", "")
    return fuse_model(model(text, inputs + more, opset=opset))


def expected(feeds, causal, window):
    """The definition in float64: the last query stands at the last key of its batch."""
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    k, v = (np.repeat(tensor, q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + feeds.get("mask", 0.0)
    lengths = feeds["n"][:, None, None, None]
    columns = np.arange(k.shape[2])
    ahead = columns - (np.arange(q.shape[2])[:, None] + lengths - q.shape[2])
    seen = columns < lengths
    if causal:
        seen = seen & (ahead <= 0)
    if window >= 0:
        seen = seen & (abs(ahead) <= window)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total, total, 1) @ v


def numbers(keys):
    """Lengths of three batches: none, one, odd, and all keys; and none that there cannot be."""
    return [0, keys, 1], [keys, max(keys - 2, 0), min(keys, 3)]


@pytest.mark.parametrize("mask", ["", "mask"])
@pytest.mark.parametrize(
    "attributes",
    [pytest.param(a, marks=HAS_WINDOWS if "window" in a else ()) for a in SEEN],
)
def test_lengths(attributes, mask):
    outcome = fused(attributes, mask=mask, more=", T[B, 1, Q, K] mask" if mask else "")
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "lengths") == 1
    runs = session(outcome.before), session(outcome.after)
    for queries, keys in SIZES:
        for counted in numbers(keys):
            feeds = draw(outcome.before, {"B": 3, "Q": queries, "K": keys}, keys)
            feeds["n"] = np.array(counted)
            theirs, ours = (run.run(None, feeds)[0] for run in runs)
            compare(f"{attributes} {queries}x{keys} {counted}", theirs, ours)
            want = expected(feeds, *SEEN[attributes]).astype(np.float32)
            compare(f"{attributes} {queries}x{keys} {counted}, float64", want, ours)


@pytest.mark.parametrize("count", [-1, -(2**31), 8, 1000])
def test_numbers_of_keys_that_there_cannot_be(count):
    """onnxruntime refuses them; here fewer than none is none, and more than all is all."""
    outcome = fused()
    feeds = draw(outcome.before, {"B": 2, "Q": 3, "K": 7}, 0)
    feeds["n"] = np.array([count, 4])
    ours = session(outcome.after).run(None, feeds)[0]
    feeds["n"] = np.array([min(max(count, 0), 7), 4])
    compare(str(count), expected(feeds, False, -1).astype(np.float32), ours)


def test_heads_side_by_side():
    heads = "q_num_heads=4, kv_num_heads=2"
    for attributes, mask in itertools.product(("", ", is_causal=1"), ("", "mask")):
        more = ", T[B, 4, Q, K] mask" if mask else ""
        outcome = fused(heads + attributes, BY_SIDE, mask, more)
        assert outcome.counts == {"FlashAttention": 1}, outcome.fused.misses
        for queries, keys in SIZES:
            outcome.same({"B": 2, "Q": queries, "K": keys}, n=np.array([keys, 1]))


def test_a_node_without_lengths_beside_one_with():
    text = """
        a = Attention(q, k, v, , , , n)
        b = Attention<is_causal=1>(a, a, a)
        y = Attention(b, k, v, mask)"""
    made = model(text, "T[B, 4, Q, 6] q, T[B, 4, K, 6] k, T[B, 4, K, 6] v, int64[B] n"
                 ", T[Q, K] mask", opset=24)  # fmt: skip
    outcome = fuse_model(made)
    assert outcome.counts == {"FlashAttention": 3}
    assert len(outcome.after.functions) == 1
    outcome.same({"B": 2, "Q": 5, "K": 7}, n=np.array([3, 7]))


def test_lengths_stay_whatever_is_said_of_positions():
    """Passes that read masks, and places of queries, leave what is counted from elsewhere."""
    text = "y = Attention<is_causal=1>(q, k, v, , , , [3, 0])"
    made = model(text, QKV.replace("B, ", "2, ").replace(", int64[B] n", ""), opset=24)
    library = ("FlashAttention", "PackedAttention")
    fuse_model(made, library=library).same({"Q": 5, "K": 5}, {"Q": 2, "K": 4})


def test_they_come_along_where_q_k_and_v_lie_side_by_side():
    heads = "".join(
        f"{name}_rows = Reshape({name}_flat, [0, 0, 4, 6])\n"
        f"{name} = Transpose<perm=[0, 2, 1, 3]>({name}_rows)\n"
        for name in "qkv"
    )
    text = f"""
        q_flat, k_flat, v_flat = Split<axis=2, num_outputs=3>(x)
        {heads}
        y = Attention<is_causal=1>(q, k, v, , , , n)"""
    made = model(text, "T[B, K, 72] x, int64[B] n", opset=24)
    outcome = fuse_model(made, library={"FlashAttention", "PackedAttention"})
    assert outcome.attribute("PackedAttention", "lengths") == 1
    outcome.same({"B": 3, "K": 7}, n=np.array([0, 7, 4]))


def test_lengths_of_another_batch_are_refused():
    outcome = fused(inputs=QKV.replace("B, ", "3, ").replace("int64[B]", "int64[2]"))
    outcome.refused("FlashAttention", "y", "its lengths are (2), want (3)")


@HAS_WINDOWS
def test_a_window_that_differs_to_its_sides_is_refused():
    qkv = QKV.replace("Q", "K").replace(", int64[B] n", "")
    text = "y = Attention<left_window_size=2, right_window_size=1>(q, k, v)"
    outcome = fuse_model(model(text, qkv, opset=25))
    outcome.refused("FlashAttention", "y", "sees keys from 2 behind to 1 ahead of a query")


@HAS_WINDOWS
@pytest.mark.parametrize("attributes", ["left_window_size=2, right_window_size=2"])
def test_a_window_over_other_keys_is_refused(attributes):
    text = f"y = Attention<{attributes}>(q, k, v)"
    outcome = fuse_model(model(text, QKV.replace(", int64[B] n", ""), opset=25))
    outcome.refused("FlashAttention", "y", "has a window over Q queries and K keys")


@HAS_WINDOWS
def test_a_window_behind_a_cache_is_left():
    """Where its queries stand is told from the cache, which must not be joined then."""
    text = "y, nk, nv = Attention<left_window_size=2>(q, k, v, , pk, pv)"
    inputs = QKV.replace(", int64[B] n", ", T[B, 2, P, 6] pk, T[B, 2, P, 6] pv")
    made = model(text, inputs, "T[B, 4, Q, 6] y, T[B, 2, N, 6] nk, T[B, 2, N, 6] nv", opset=25)
    outcome = fuse_model(made)
    outcome.refused("FlashAttention", "y", "has a key/value cache of its own")
    assert outcome.node("Attention").attribute


def test_drawn_lengths_reach_the_keys():
    """A proof draws every length that there can be, not 0 and 1 alone."""
    shapes = {"q": (2, 4, 5, 6), "k": (2, 2, 9, 6), "v": (2, 2, 9, 6), "n": (2,)}
    assert roles.of_subgraph(fused().before, shapes).bounds == {"n": 10}


@pytest.mark.parametrize(
    ("attributes", "right", "wrong"),
    [
        ("", "", ""),
        ("is_causal=1", "", ""),
        ("", "there = Less(columns", "there = LessOrEqual(columns"),
        ("is_causal=1", "visible = LessOrEqual", "visible = Less"),
        ("is_causal=1", "of_batch = Sub(key_counts, queries)", "of_batch = Sub(count, queries)"),
    ],
)
def test_the_proof_holds_and_finds_a_wrong_one(attributes, right, wrong, monkeypatch):
    definition = DEFINITIONS["FlashAttention"]
    changed = replace(definition, body=lambda uses: definition.body(uses).replace(right, wrong))
    monkeypatch.setitem(DEFINITIONS, "FlashAttention", changed)
    source = Source(Path("model.onnx"), fused(attributes).before, Path())
    found = fuse(normalise(source))
    after, config = export(found, source), Config(Path("model.onnx"))
    proof = prove(source, after, found.graph, found.matches, config, Progress(), whole=False)
    assert bool(proof.failed) == bool(wrong)
