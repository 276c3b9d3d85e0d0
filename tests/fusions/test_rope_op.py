"""The standard RotaryEmbedding operator becomes Rope."""

from __future__ import annotations

import numpy as np
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


def test_positions_of_one_batch_are_proven(tmp_path):
    """Nor does it take these."""
    inputs = f"{X}, T[7, 3] cos, T[7, 3] sin, int64[1, S] positions"
    made = model("y = RotaryEmbedding(x, cos, sin, positions)", inputs, opset=23)
    onnx.save(made, tmp_path / "model.onnx")
    report = opfuse.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert report.counts["Rope"] == 1


def test_fp16():
    outcome = rope(dtype="float16")
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("cache", ["B, S", "1, S"])
@pytest.mark.parametrize(
    ("attributes", "half"),
    [
        ("<interleaved=1>", 3),
        ("<rotary_embedding_dim=4>", 2),
        ("<interleaved=1, rotary_embedding_dim=4>", 2),
    ],
)
def test_pairs_and_a_part_of_each_head(attributes, half, cache):
    outcome = rope(attributes, f"{cache}, {half}")
    assert outcome.counts == {"Rope": 1}
    if cache == "B, S":  # onnxruntime's kernel takes no others
        outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("attributes", "half"), [("", 3), ("<interleaved=1, rotary_embedding_dim=4>", 2)]
)
def test_rows_of_a_table_by_positions(attributes, half):
    extra = ", int64[B, S] positions"
    outcome = rope(attributes, f"7, {half}", extra=extra, last=", positions")
    assert outcome.counts == {"Rope": 1}
    for sizes in SIZES:
        positions = np.random.default_rng(0).integers(0, 7, (sizes["B"], sizes["S"]))
        outcome.same(sizes, positions=positions)


def test_halves_and_pairs_are_not_in_one_model():
    text = """
        a = RotaryEmbedding(x, cos, sin)
        b = RotaryEmbedding<interleaved=1>(x, cos, sin)
        y = Sub(a, b)
    """
    outcome = fuse_model(model(text, f"{X}, T[B, S, 3] cos, T[B, S, 3] sin", opset=23))
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


def test_a_cache_of_unprovable_shape_is_refused():
    rope(cache="C, S, 3").refused("Rope", "y", "does not fit x (B, 4, S, 6)")


@pytest.mark.parametrize("attributes", ["", ", interleaved=1", ", rotary_embedding_dim=4"])
def test_heads_side_by_side(attributes):
    half = 2 if "dim" in attributes else 3
    outcome = rope(f"<num_heads=4{attributes}>", f"B, S, {half}", x="T[B, S, 24] x")
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)


def test_heads_that_are_not_told_are_refused():
    outcome = rope("<num_heads=5>", x="T[B, S, 24] x")
    outcome.refused("Rope", "y", "want ranks 4 and 3")
