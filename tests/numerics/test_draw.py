"""Concrete sizes for the symbols of a match."""

from __future__ import annotations

from math import prod

from onnx import TensorProto

from opfuse.graph.dims import broadcast, evaluate, parse, unknown_dim
from opfuse.graph.match import TensorSpec
from opfuse.numerics import draw


def spec(*shape):
    return TensorSpec("x", TensorProto.FLOAT, shape)


def test_a_size_that_nothing_is_known_of_is_as_long_as_its_axis_elsewhere():
    """Speech models: frames by the convolutions' formula, and frames that a mask's code gave."""
    frames = parse("samples") // 5 - 1
    lost, other = unknown_dim(1), unknown_dim(2)
    specs = [spec(parse("batch"), broadcast(frames, lost), 64), spec(parse("batch"), other, 64)]
    runs = [sizes for sizes, _, _ in draw.families(specs)]
    shapes = [[[evaluate(dim, sizes) for dim in one.shape] for one in specs] for sizes in runs]
    assert [[2, 64 // 5 - 1, 64]] * 2 in shapes


def test_the_first_family_tells_sizes_apart():
    (sizes, single, _), *_ = draw.families([spec(parse("batch"), parse("seq"), parse("past"))])
    assert len(set(sizes.values())) == 3
    assert [single["batch"], single["seq"], single["past"]] == [2, 1, 1]


def test_convolutions_get_enough_samples_whichever_axis_they_lie_on():
    """WavLM has its frames in front, and its bias has sizes that nothing is known of."""
    frames = parse("samples") // 320 - 1
    rows, columns = unknown_dim(1), unknown_dim(2)
    specs = [spec(frames, 4 * parse("batch"), 16), spec(4 * parse("batch"), rows, columns)]
    runs = [sizes for sizes, _, _ in draw.families(specs)]
    shapes = [[[evaluate(dim, sizes) for dim in one.shape] for one in specs] for sizes in runs]
    assert any(a[0] > 1 and b[1:] == [a[0], a[0]] for a, b in shapes)


def test_axes_that_nothing_is_known_of_are_searched_for_at_sizes_that_stay_small():
    """WavLM by TorchScript: nothing is known of three axes of the bias, one is batch and heads."""
    frames, heads = (parse("samples") // 5 + 3) // 4 - 1, 4 * parse("batch")
    bias = spec(*(unknown_dim(place) for place in range(3)))
    specs = [spec(heads, frames, 16), spec(frames, heads, 16), bias]
    runs = [sizes for sizes, _, _ in draw.families(specs)]
    shapes = [[[evaluate(dim, sizes) for dim in one.shape] for one in specs] for sizes in runs]
    assert any(q[1] > 1 and mask == [q[0], q[1], q[1]] for q, _, mask in shapes)
    assert max(prod(shape) for one in shapes for shape in one) < 1e7


def test_a_mask_names_the_keys_of_a_cache_and_the_new_ones_anew():
    keys = parse("past") + parse("seq")
    specs = [spec(parse("batch"), keys, 64), spec(parse("batch"), parse("seq"), parse("total"))]
    for place in range(3):
        runs = [family[place] for family in draw.families(specs)]
        ends = [(evaluate(keys, sizes), sizes["total"], sizes["past"]) for sizes in runs]
        assert any(have == want and past != want for have, want, past in ends)
