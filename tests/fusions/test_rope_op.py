"""The standard RotaryEmbedding operator becomes Rope."""

from __future__ import annotations

import onnx
import pytest

import opfuse
from tests.small import fuse_model, model

X = "T[B, 4, S, 6] x"
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def rope(attributes="", cache="B, S, 3", *, x=X, dtype="float", extra="", last=""):
    text = f"y = RotaryEmbedding{attributes}(x, cos, sin{last})"
    inputs = f"{x}, T[{cache}] cos, T[{cache}] sin{extra}"
    return fuse_model(model(text, inputs, dtype=dtype, opset=23))


@pytest.mark.parametrize("attributes", ["", "<rotary_embedding_dim=6>", "<num_heads=4>"])
def test_it_fuses(attributes):
    outcome = rope(attributes)
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


def test_angles_of_one_batch_are_proven(tmp_path):
    """onnxruntime's kernel does not take them, and dynamo exports them where no positions come."""
    inputs = f"{X}, T[1, S, 3] cos, T[1, S, 3] sin"
    onnx.save(model("y = RotaryEmbedding(x, cos, sin)", inputs, opset=23), tmp_path / "model.onnx")
    report = opfuse.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert report.counts["Rope"] == 1


def test_fp16():
    outcome = rope(dtype="float16")
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("attributes", "cache"),
    [("<interleaved=1>", "B, S, 3"), ("<rotary_embedding_dim=4>", "B, S, 2")],
)
def test_other_rotations_are_refused(attributes, cache):
    outcome = rope(attributes, cache)
    outcome.refused("Rope", "y", "turns pairs or only a part of each head")
    outcome.same(*SIZES)


def test_a_cache_of_unprovable_shape_is_refused():
    rope(cache="C, S, 3").refused("Rope", "y", "does not fit x (B, 4, S, 6)")


def test_rank_3_is_refused():
    outcome = rope("<num_heads=4>", x="T[B, S, 24] x")
    outcome.refused("Rope", "y", "want ranks 4 and 3")
    outcome.same(*SIZES)


def test_positions_keep_the_operator():
    outcome = rope(cache="7, 3", extra=", int64[B, S] positions", last=", positions")
    assert outcome.ops == ["RotaryEmbedding"]
