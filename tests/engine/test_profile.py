"""Profiles: defaults, consistency over shared symbols, refusals that list the inputs."""

from __future__ import annotations

import onnx
import pytest

from opfuse.engine.profile import Range, completed, resolve
from opfuse.errors import InputError
from opfuse.graph.dims import symbol
from tests.engine_models import dynamic

NOTHING = ({}, {}, {})
DECODE = dynamic(
    ("ids", ["batch", 1]),
    ("mask", ["batch", "past + 1"]),
    ("cache", ["batch", 2, "past", 16]),
)


def test_first_axis_is_a_batch_and_the_rest_are_sequences():
    profile = resolve(dynamic(("ids", ["n", "t"]), ("mask", ["n", "t"])), NOTHING)
    assert profile.ranges == {name: Range((1, 1), (1, 128), (8, 512)) for name in ("ids", "mask")}
    assert [text.split()[0] for text in profile.assumed] == ["n", "t"]


def test_fixed_inputs_need_no_range():
    assert resolve(dynamic(("x", [2, 3]), ("scalar", [])), NOTHING).ranges == {}


@pytest.mark.parametrize("spelling", ["past + 1", "past+1", "past_plus_1", "1 + past"])
def test_sums_follow_their_symbols(spelling):
    graph = dynamic(("mask", ["batch", spelling]), ("cache", ["batch", 2, "past", 16]))
    profile = resolve(graph, NOTHING)
    assert profile.ranges["cache"] == Range((1, 2, 1, 16), (1, 2, 128, 16), (8, 2, 512, 16))
    assert profile.ranges["mask"] == Range((1, 2), (1, 129), (8, 513))


def test_total_sequence_length_is_the_sum_of_its_parts():
    graph = dynamic(
        ("ids", ["b", "sequence_length"]),
        ("mask", ["b", "total_sequence_length"]),
        ("cache", ["b", 4, "past_sequence_length", 8]),
    )
    assert resolve(graph, NOTHING).ranges["mask"].opt == (1, 256)


def test_a_name_that_only_looks_like_a_sum_is_a_symbol():
    assert resolve(dynamic(("x", ["n", "a_plus_b"])), NOTHING).ranges["x"].max == (8, 512)


def test_a_given_shape_decides_the_inputs_that_share_its_symbols():
    shapes = [{"cache": (batch, 2, past, 16)} for batch, past in ((1, 4), (2, 32), (4, 64))]
    profile = resolve(DECODE, shapes)
    assert profile.ranges["mask"] == Range((1, 5), (2, 33), (4, 65))
    assert profile.ranges["ids"] == Range((1, 1), (2, 1), (4, 1))
    assert profile.assumed == ()


def test_a_sum_can_be_what_is_given():
    profile = resolve(DECODE, ({}, {"mask": (2, 100)}, {}))
    assert profile.ranges["cache"] == Range(*3 * [(2, 2, 99, 16)])


def test_missing_levels_come_from_the_given_ones():
    graph = dynamic(("x", ["n", 4]))
    assert resolve(graph, ({}, {"x": (3, 4)}, {})).ranges["x"] == Range((3, 4), (3, 4), (3, 4))
    assert resolve(graph, ({"x": (2, 4)}, {}, {"x": (9, 4)})).ranges["x"].opt == (9, 4)


def test_unnamed_dimensions_are_independent_and_reported():
    profile = resolve(dynamic(("x", [None, None])), NOTHING)
    assert profile.ranges["x"] == Range((1, 1), (1, 128), (8, 512))
    assert profile.assumed[1].startswith("axis 1 of x was taken to be 1 to 512")


def test_longest_bounds_what_is_assumed():
    assert resolve(dynamic(("x", ["n", "t"])), NOTHING, 64).ranges["x"] == Range(
        (1, 1), (1, 64), (8, 64)
    )


def test_initializers_are_not_inputs():
    graph = dynamic(("x", ["n", 4]), ("w", ["n", 4]))
    graph.initializer.append(onnx.TensorProto(name="w"))
    assert set(resolve(graph, NOTHING).ranges) == {"x"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({}, {"idz": (1, 1)}, {}), "'idz', which is no input"),
        (({}, {"ids": (1,)}, {}), "opt shape of 'ids' has 1 dimensions"),
        (({}, {"ids": (1, 2)}, {}), "opt shape of 'ids' is 1x2, .* make it 1x1"),
        (({"ids": (4, 1)}, {"ids": (2, 1)}, {}), "'batch' has min 4, opt 2"),
        (({}, {"ids": (4, 1)}, {"ids": (2, 1)}), "'batch' has min 4, opt 4, max 2"),
        (({}, {"ids": (4, 1), "mask": (2, 9)}, {}), "opt shape of '(ids|mask)' is"),
        (({}, {"mask": (1, 0)}, {}), "past"),
    ],
)
def test_refusals_list_the_inputs(given, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(DECODE, given)
    assert "cache [batch, 2, past, 16]" in str(caught.value)


def test_an_input_without_rank_is_refused():
    graph = dynamic(("x", ["n"]))
    graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="'x' has no rank"):
        resolve(graph, NOTHING)


def test_an_input_that_is_no_tensor_is_refused():
    graph = dynamic()
    element = onnx.helper.make_tensor_type_proto(1, [2])
    kind = onnx.helper.make_sequence_type_proto(element)
    graph.input.append(onnx.helper.make_value_info("list", kind))
    with pytest.raises(InputError, match="'list' is not a tensor"):
        resolve(graph, NOTHING)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"x": (1, 8), "past": (1, 4), "mask": (1, 12)}),
        ({"x": (2, 3)}, {"x": (2, 3), "past": (2, 4), "mask": (2, 7)}),
        ({"mask": (1, 12), "past": (1, 0)}, {"x": (1, 12), "past": (1, 0), "mask": (1, 12)}),
        ({"mask": (3, 9)}, {"x": (3, 8), "past": (3, 4), "mask": (3, 9)}),  # of two unknown sizes
    ],
)
def test_what_the_given_shapes_say_of_others_is_completed(given, found):
    dims = {
        "x": (symbol("b"), symbol("s")),
        "past": (symbol("b"), symbol("p")),
        "mask": (symbol("b"), symbol("s") + symbol("p")),
    }
    usual = {"x": (1, 8), "past": (1, 4), "mask": (1, 12)}
    assert completed(dims, usual, given) == found
