"""The standard Attention operator becomes FlashAttention."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import opfuse
from tests.fusions.test_repeat_kv import SPELLINGS, repeated
from tests.small import fuse_model, model

QKV = "T[B, 4, Q, 6] q, T[B, 4, K, 6] k, T[B, 4, K, 6] v"
SELF = QKV.replace("Q", "K")
HAS_PADDING = pytest.mark.skipif(onnx.defs.onnx_opset_version() < 25, reason="no opset 25")
SIZES = ({"B": 2, "Q": 5, "K": 5}, {"B": 1, "Q": 1, "K": 7}, {"B": 3, "Q": 4, "K": 1})
SQUARE = ({"B": 2, "K": 5}, {"B": 1, "K": 1})


def attention(last="", attributes="", inputs="", *, qkv=QKV, before="", dtype="float", opset=23):
    text = f"{before}\ny = Attention{attributes}(q, k, v{last})"
    typed = ", ".join(filter(None, [qkv, inputs]))
    return fuse_model(model(text, typed, dtype=dtype, opset=opset))


@pytest.mark.parametrize("attributes", ["", "<scale=0.25>", "<softcap=2.0>"])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_without_a_mask(attributes, dtype):
    outcome = attention(attributes=attributes, dtype=dtype)
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["B, 1, Q, K", "B, 4, Q, K", "1, 1, Q, K", "Q, K"])
def test_additive_masks(shape):
    outcome = attention(", mask", inputs=f"T[{shape}] mask")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


def test_a_boolean_mask():
    outcome = attention(", mask", inputs="bool[B, 1, Q, K] mask")
    assert outcome.ops == ["Where", "FlashAttention"]
    keep = np.random.default_rng(5).integers(0, 2, (2, 1, 5, 5)).astype(bool)
    keep[..., 0] = True
    outcome.same({"B": 2, "Q": 5, "K": 5}, mask=keep)


def test_causal():
    outcome = attention(attributes="<is_causal=1>", qkv=SELF)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "causal") == 1
    outcome.same(*SQUARE)


def test_causal_with_a_mask():
    outcome = attention(", mask", "<is_causal=1>", "T[B, 1, K, K] mask", qkv=SELF)
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SQUARE)


def test_grouped_heads():
    qkv = "T[B, 6, Q, 5] q, T[B, 2, K, 5] k, T[B, 2, K, 5] v"
    outcome = attention(qkv=qkv)
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_repeated_heads_are_dropped():
    before = repeated(SPELLINGS["by shape"], "k0", "k", 2, 2)
    before += repeated(SPELLINGS["by shape"], "v0", "v", 2, 2)
    qkv = "T[B, 4, Q, 6] q, T[B, 2, K, 6] k0, T[B, 2, K, 6] v0"
    outcome = attention(qkv=qkv, before=before)
    assert outcome.ops == ["FlashAttention"]
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_a_cap_stands_before_the_mask():
    outcome = attention(", mask", "<softcap=2.0>", "T[B, 1, Q, K] mask")
    assert outcome.ops == ["FlashAttention"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("kind", ["bool", "T"])
def test_a_fully_masked_row_gives_zeros(kind):
    outcome = attention(", mask", inputs=f"{kind}[B, 1, Q, K] mask")
    keep = np.ones((2, 1, 5, 5), bool)
    keep[0, 0, 2] = False
    mask = keep if kind == "bool" else np.where(keep, 0, -np.inf).astype(np.float32)
    outcome.same({"B": 2, "Q": 5, "K": 5}, mask=mask)


def test_a_mask_of_one_row_for_all_is_proven(tmp_path):
    """onnxruntime's kernel for opset 23 does not take it."""
    made = model("y = Attention(q, k, v, mask)", f"{QKV}, T[B, 1, 1, K] mask", opset=23)
    onnx.save(made, tmp_path / "model.onnx")
    report = opfuse.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert report.counts["FlashAttention"] == 1


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["bool", "T"])
@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("y = Attention<is_causal=1>(q, k, v, mask)", 23),
        ('y = Attention(q, k, v, mask, "", "", count)', 24),
    ],
    ids=["causal", "counted"],
)
def test_a_mask_of_one_row_beside_other_bounds_is_proven(tmp_path, text, opset, kind, dtype):
    """Neither onnxruntime's kernel nor ONNX's evaluator computes all of these."""
    inputs = f"{SELF}, {kind}[B, 1, 1, K] mask, int64[B] count"
    onnx.save(model(text, inputs, dtype=dtype, opset=opset), tmp_path / "model.onnx")
    report = opfuse.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert report.counts["FlashAttention"] == 1
    assert not report.proof.whole.not_run


def test_what_is_neither_causal_nor_not_is_refused():
    """onnxruntime takes 1 alone for causal, ONNX's own evaluator anything but 0."""
    outcome = attention(attributes="<is_causal=-1>", qkv=SELF)
    outcome.refused("FlashAttention", "y", "has is_causal=-1")


def test_causal_over_other_keys_is_refused():
    outcome = attention(attributes="<is_causal=1>")
    outcome.refused("FlashAttention", "y", "is causal with Q queries and K keys")


def test_a_mask_with_symbols_of_its_own():
    outcome = attention(", mask", inputs="T[C, 1, Q, K] mask")
    assert outcome.counts == {"FlashAttention": 1}


def test_a_mask_that_makes_a_batch_is_refused():
    qkv = "T[1, 4, Q, 6] q, T[1, 4, K, 6] k, T[1, 4, K, 6] v"
    outcome = attention(", mask", inputs="T[B, 1, Q, K] mask", qkv=qkv)
    outcome.refused("FlashAttention", "y", "which does not provably broadcast")


@pytest.mark.parametrize("keys", [1, 3])
def test_a_mask_that_ends_before_the_keys_is_refused(keys):
    """From ai.onnx 24 on the operator hides the keys behind it, also behind a single one."""
    for size in ("K", "7"):
        qkv = f"T[B, 4, Q, 6] q, T[B, 4, {size}, 6] k, T[B, 4, {size}, 6] v"
        outcome = attention(", mask", inputs=f"T[B, 1, Q, {keys}] mask", qkv=qkv)
        assert not outcome.fused.counts["FlashAttention"]


def test_a_mask_of_one_key_is_told():
    outcome = attention(", mask", inputs="T[B, 1, Q, 1] mask")
    outcome.refused("FlashAttention", "y", "ends after 1 of K keys")


@pytest.mark.parametrize(("keys", "opset"), [("K", 23), ("K", 24), ("W", 24)])
def test_a_mask_of_integers_is_refused(keys, opset):
    """The operator adds it as it is."""
    outcome = attention(", mask", inputs=f"int64[B, 1, Q, {keys}] mask", opset=opset)
    outcome.refused("FlashAttention", "y", "mask is not floating-point")


def test_heads_of_nothing_are_refused():
    qkv = "T[B, 4, Q, 0] q, T[B, 4, K, 0] k, T[B, 4, K, 0] v"
    attention(qkv=qkv).refused("FlashAttention", "y", "the head size is 0")


@HAS_PADDING
@pytest.mark.parametrize("one", [True, 0.0])
def test_a_mask_that_hides_none_of_its_keys_may_end_before_them(one):
    """It is constant but for its size, and behind its end it hides."""
    text = "size = Shape(other)\nmask = Expand(one, size)\ny = Attention(q, k, v, mask)"
    weights = {"one": np.array(one, bool if one is True else np.float32)}
    made = model(text, f"{QKV}, T[B, 1, Q, W] other", opset=25, weights=weights)
    outcome = fuse_model(made)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same({"B": 2, "Q": 5, "K": 7, "W": 3}, {"B": 2, "Q": 5, "K": 7, "W": 7})


@HAS_PADDING
@pytest.mark.parametrize("kind", ["bool", "T"])
def test_a_mask_may_end_before_the_keys(kind):
    """It hides those behind it; onnxruntime computes that from ai.onnx 25 on."""
    text = "y = Attention(q, k, v, mask)"
    made = model(text, f"{QKV}, {kind}[B, 1, Q, W] mask", opset=25)
    outcome = fuse_model(made)
    assert outcome.counts == {"FlashAttention": 1}
    assert "Pad" in outcome.ops
    for keys in (1, 4, 7):
        mask = np.random.default_rng(keys).integers(0, 2, (2, 1, 5, keys)).astype(bool)
        mask[..., 0] = True
        mask[0, 0, 0] = False
        drawn = mask if kind == "bool" else np.where(mask, 0.5, -np.inf).astype(np.float32)
        outcome.same({"B": 2, "Q": 5, "K": 7, "W": keys}, mask=drawn)


def test_a_mask_of_as_many_keys_by_name_is_not_padded():
    made = model("y = Attention(q, k, v, mask)", QKV + ", T[B, 1, Q, K] mask", opset=24)
    assert fuse_model(made).ops == ["FlashAttention"]


def test_heads_side_by_side():
    qkv = "T[B, Q, 24] q, T[B, K, 12] k, T[B, K, 12] v"
    outcome = attention(attributes="<q_num_heads=4, kv_num_heads=2>", qkv=qkv)
    assert outcome.counts == {"FlashAttention": 1}
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_heads_side_by_side_and_causal():
    qkv = "T[B, K, 24] q, T[B, K, 24] k, T[B, K, 24] v"
    heads = "<q_num_heads=4, kv_num_heads=4, is_causal=1, softcap=2.0, scale=0.3>"
    outcome = attention(attributes=heads, qkv=qkv)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*SQUARE)


def test_heads_that_do_not_divide_are_refused():
    qkv = "T[B, Q, 24] q, T[B, K, H] k, T[B, K, H] v"
    outcome = attention(attributes="<q_num_heads=4, kv_num_heads=4>", qkv=qkv)
    outcome.refused("FlashAttention", "y", "q, k, v have ranks 3, 3, 3, want 4")


PAST = "T[B, 4, P, 6] past_k, T[B, 4, P, 6] past_v"
CACHED = ({"B": 2, "Q": 3, "K": 3, "P": 4, "W": 7}, {"B": 1, "Q": 1, "K": 1, "P": 5, "W": 6})


def cached(outputs: str, attributes: str = "", qkv: str = QKV, mask: str = "mask"):
    text = f"{outputs} = Attention{attributes}(q, k, v, {mask}, past_k, past_v)"
    masks = ", T[B, 1, Q, W] mask" if mask == "mask" else ""
    made = model(text, f"{qkv}{masks}, {PAST}", ", ".join(f"T {o}" for o in outputs.split(", ")),
                 opset=23)  # fmt: skip
    shapes = {"y": ["B", "Q", 24] if "num_heads" in attributes else ["B", 4, "Q", 6]}
    for value in made.graph.output:  # onnx infers none of a cache
        shape = shapes.get(value.name, ["B", 4, None, 6])
        kind = onnx.TensorProto.FLOAT
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    return fuse_model(made)


def test_a_cache():
    outcome = cached("y, present_k, present_v")
    assert outcome.counts == {"FlashAttention": 1}
    assert "Attention" not in outcome.ops
    outcome.same(*CACHED)


def test_a_cache_of_heads_side_by_side():
    qkv = "T[B, Q, 24] q, T[B, K, 24] k, T[B, K, 24] v"
    heads = "<q_num_heads=4, kv_num_heads=4>"
    outcome = cached("y, present_k, present_v", heads, qkv)
    assert outcome.counts == {"FlashAttention": 1}
    outcome.same(*CACHED)


def test_a_causal_cache_is_refused():
    """Opsets differ in which keys a query sees then."""
    outcome = cached("y, present_k, present_v", "<is_causal=1>")
    outcome.refused("FlashAttention", "y", "has a key/value cache of its own")


def test_scores_that_are_read_are_refused():
    outcome = cached("y, present_k, present_v, scores")
    outcome.refused("FlashAttention", "y", "has a key/value cache of its own")


def test_fp64_is_refused():
    attention(dtype="double").refused("FlashAttention", "y", "neither fp32, fp16, nor bf16")
