"""Types and ranges of tensors between segments, from the inputs' symbols."""

from __future__ import annotations

import onnx

from opfuse.engine.profile import Range, resolve
from opfuse.engine.tensors import Typed, range_of, types_of
from opfuse.graph.dims import parse, symbol
from opfuse.stages.lower import lower
from tests.engine_models import add_rms_norm, dynamic

PROFILE = resolve(
    dynamic(("ids", ["batch", "seq"]), ("past", ["batch", "past"])),
    (
        {"ids": (1, 1), "past": (1, 4)},
        {"ids": (2, 8), "past": (2, 16)},
        {"ids": (4, 32), "past": (4, 64)},
    ),
)


def test_the_profile_knows_the_sizes_of_its_symbols():
    assert PROFILE.sizes[1] == {"batch": 2, "seq": 8, "past": 16}


def test_a_sum_of_sizes():
    typed = Typed(1, (symbol("batch"), parse("past + seq"), 64))
    assert range_of(typed, PROFILE) == Range((1, 5, 64), (2, 24, 64), (4, 96, 64))


def test_a_difference_is_largest_where_one_symbol_is_smallest():
    typed = Typed(1, (parse("past - seq + 32"),))
    assert range_of(typed, PROFILE) == Range((4,), (40,), (95,))


def test_a_size_that_nothing_is_known_of_has_no_range():
    assert range_of(Typed(1, (symbol("?3"),)), PROFILE) is None


def test_fused_ops_that_are_left_keep_their_types():
    made = add_rms_norm(1)
    lower(made, "leave", ())
    types = types_of(made)
    assert types["sum.0"].element == onnx.TensorProto.FLOAT16
    assert list(map(str, types["y.0"].shape)) == ["batch", "seq", "64"]


def test_inputs_without_names_for_their_sizes_get_those_of_the_profile():
    made = add_rms_norm(1)
    for info in made.graph.input:
        for dim in list(info.type.tensor_type.shape.dim)[:2]:
            dim.ClearField("dim_param")
    del made.graph.value_info[:]
    types = types_of(made)
    profile = resolve(made.graph, ({}, {}, {}))
    assert range_of(types["x"], profile) == profile.ranges["x"]
