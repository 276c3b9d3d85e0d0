"""Inputs for whole models, from the graph alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from opfuse.graph.dims import evaluate
from opfuse.numerics import sample


def graph(inputs, body="y = Identity(x)"):
    text = (
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        f"g ({inputs}) => (float[n] y) <float[9, 4] table = {{{', '.join(['0'] * 36)}}}> {{\n"
        f"{body}\n}}"
    )
    return onnx.parser.parse_model(text).graph


def test_indices_stay_below_the_length_of_their_table():
    body = "f = Cast<to: int = 7>(ids)\ny = Gather(table, f)"
    items = sample.inputs(graph("int64[b, s] ids", body))
    assert items[0].bound == 9
    drawn = sample.draw(items, {"b": 50, "s": 50}, 0)["ids"]
    assert (drawn.min(), drawn.max()) == (0, 8)


def test_masks_are_padded_on_the_right():
    items = sample.inputs(graph("int64[b, s] keep", "y = Cast<to: int = 1>(keep)"))
    mask = sample.draw(items, {"b": 3, "s": 7}, 0)["keep"]
    assert mask[0].all()
    assert (np.diff(mask, axis=1) <= 0).all()
    assert mask[:, 0].all()
    assert not mask[1:, -1].any()


def test_positions_go_on_behind_the_past():
    inputs = "int64[b, s] position_ids, float[b, 2, past, 8] cache"
    items = sample.inputs(graph(inputs, "y = Neg(cache)"))
    drawn = sample.draw(items, {"b": 2, "s": 3, "past": 5}, 0)
    assert drawn["position_ids"].tolist() == [[5, 6, 7]] * 2
    assert drawn["cache"].shape == (2, 2, 5, 8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("past_plus_1", 6),
        ("past + 1", 6),
        ("past_plus_seq", 12),
        ("2*seq", 14),
        ("seq_minus_1", 6),
        ("seq_times_3", 21),
        ("past_sequence_length + 1", 10),
        ("what is this?", 4),
    ],
)
def test_dimension_names_may_be_expressions(text, value):
    sizes = {"past": 5, "seq": 7, "past_sequence_length": 9, "what is this?": 4}
    assert evaluate(sample.dimension(text), sizes) == value


def test_leading_dimensions_are_the_batch_under_any_name():
    items = sample.inputs(graph("int64[s18, s41] a, int64[s43, s41] b", "y = Cast<to: int = 1>(a)"))
    first = sample.assignments(items)[0]
    assert first["s18"] == first["s43"] == 2
    assert first["s41"] > 2


def test_a_mask_may_be_as_long_as_past_and_present():
    inputs = "float[b, 2, past, 8] cache, int64[b, seq] position_ids, int64[b, total] keep"
    items = sample.inputs(graph(inputs, "y = Neg(cache)"))
    guesses = sample.assignments(items)
    assert any(sizes["total"] == sizes["past"] + sizes["seq"] for sizes in guesses)
    assert any(sizes["total"] == sizes["past"] + 1 for sizes in guesses)
    assert set(guesses[-1].values()) == {1}


GQA = """
    n = Sub(keep, keep)
    l = Cast<to: int = 6>(n)
    y = com.microsoft.GroupQueryAttention<num_heads: int = 2, kv_num_heads: int = 2>
        (x, x, x, cache, cache, {}, all)
"""
CACHED = "float[b, seq, 16] x, float[b, 2, past, 8] cache, int32[1] all"


@pytest.mark.parametrize(
    ("sizes", "keys"),
    [((2, 7, 5), 7), ((1, 7, 5), 12), ((2, 1, 5), 6), ((1, 1, 1), 2)],
)
def test_numbers_of_keys_agree_with_the_cache(sizes, keys):
    """Several positions of several sequences are a prompt, which reads no cache."""
    items = sample.inputs(graph(f"{CACHED}, int32[b] last", GQA.format("last")))
    drawn = sample.draw(items, dict(zip(("b", "seq", "past"), sizes, strict=True)), 0)
    assert drawn["all"].tolist() == [keys]
    assert drawn["last"].tolist() == [keys - 1] * sizes[0]


def test_numbers_of_keys_are_not_those_of_the_last():
    """Of 7 keys, the last is the sixth: the model takes one away itself."""
    made = GQA.replace("Sub(keep, keep)", "Sub(n_keys, one)").format("l")
    text = f"one = Constant<value_int: int = 1>()\n{made}"
    items = sample.inputs(graph(f"{CACHED}, int64[b] n_keys", text))
    drawn = sample.draw(items, {"b": 2, "seq": 7, "past": 5}, 0)
    assert drawn["n_keys"].tolist() == [7, 7]


def test_a_mask_that_counts_keys_hides_none():
    items = sample.inputs(graph(f"{CACHED}, int64[b, total] keep", GQA.format("l")))
    assert sample.draw(items, {"b": 2, "seq": 8, "past": 8, "total": 8}, 0)["keep"].all()


def test_single_sizes_and_their_sums():
    inputs = "float[b, 2, past, 8] cache, int64[b, seq] position_ids, int64[b, total] keep"
    items = sample.inputs(graph(inputs, "y = Neg(cache)"))
    assert [sizes["total"] for sizes in sample.singles(items)] == [2, 1]
    assert len(sample.singles(sample.inputs(graph("float[b, s] x")))) == 1


def test_given_shapes_are_kept():
    items = sample.inputs(graph("float[b, s, 8] x"))
    assert all(sizes["s"] == 40 for sizes in sample.assignments(items, {"x": (3, 40, 8)}))
    with pytest.raises(ValueError, match="no input z"):
        sample.assignments(items, {"z": (3, 40, 8)})
    with pytest.raises(ValueError, match="has 8 where 9"):
        sample.assignments(items, {"x": (3, 40, 9)})


def test_the_seed_decides():
    items = sample.inputs(graph("float[b, s] x"))
    one, same, other = (sample.draw(items, {"b": 2, "s": 3}, seed)["x"] for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()


def test_inputs_must_be_tensors_of_known_rank():
    odd = graph("float[b] x")
    odd.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ValueError, match="known rank"):
        sample.inputs(odd)
