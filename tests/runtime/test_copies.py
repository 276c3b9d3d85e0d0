"""Moves of data: their boxes give what ONNX says, and bundles run them without an engine."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from opfuse.errors import InputError
from opfuse.runtime.abi import Copied
from opfuse.runtime.copies import Box, Move
from tests.engine_models import model as onnx_model
from tests.engine_models import value
from tests.runtime import host

CASES = {
    "the last axis": (Move("Concat", {"axis": 1}, ("a", "b"), ("y",)), [(3, 5), (3, 2)]),
    "a middle axis": (
        Move("Concat", {"axis": 1}, ("a", "b", "c"), ("y",)),
        [(2, 3, 4), (2, 1, 4), (2, 5, 4)],
    ),
    "an empty part": (Move("Concat", {"axis": 0}, ("a", "b"), ("y",)), [(0, 4), (3, 4)]),
    "one tensor twice": (Move("Concat", {"axis": 0}, ("a", "a"), ("y",)), [(2, 4), (2, 4)]),
    "nothing at all": (Move("Concat", {"axis": 1}, ("a", "b"), ("y",)), [(0, 2), (0, 3)]),
    "parts": (Move("Split", {"axis": 1, "sizes": (1, 0, 3)}, ("a",), ("x", "y", "z")), [(3, 4, 2)]),
    "a slice": (
        Move("Slice", {"starts": (1, -3), "ends": (9, -1), "steps": (1, 1)}, ("a",), ("y",)),
        [(4, 5)],
    ),
    "steps": (
        Move("Slice", {"starts": (0, 1), "ends": (4, 9), "steps": (3, 2)}, ("a",), ("y",)),
        [(4, 6)],
    ),
    "no axis": (
        Move("Slice", {"starts": (2,), "ends": (2,), "steps": (1,)}, ("a",), ("y",)),
        [(4,)],
    ),
    "patches": (Move("Transpose", {"perm": (0, 2, 1, 3)}, ("a",), ("y",)), [(2, 3, 4, 5)]),
    "reversed": (Move("Transpose", {"perm": (2, 1, 0)}, ("a",), ("y",)), [(2, 3, 4)]),
    "an axis of 1": (Move("Transpose", {"perm": (1, 0, 2)}, ("a",), ("y",)), [(1, 3, 4)]),
}


def reference(move, arrays):
    """What onnxruntime makes of the node."""
    element = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    names = list(dict.fromkeys(move.inputs))
    numbers, attributes, more = dict(move.numbers), {}, []
    if move.op == "Slice":
        rank = range(arrays[0].ndim)
        more = [numbers["starts"], numbers["ends"], rank, numbers["steps"]]
    elif move.op == "Split":
        attributes, more = {"axis": numbers["axis"]}, [numbers["sizes"]]
    else:
        attributes = numbers
    weights = [numpy_helper.from_array(np.array(v, np.int64), f"n{i}") for i, v in enumerate(more)]
    ends = [*move.inputs, *(item.name for item in weights)]
    node = helper.make_node(move.op, ends, list(move.outputs), **attributes)
    given = [value(name, None, element) for name in names]
    made = onnx_model([node], given, [value(n, None, element) for n in move.outputs], weights)
    return host.Runner(made)(dict(zip(move.inputs, arrays, strict=True)))


def copied(move, arrays, offset=0):
    """What the boxes of a move make in memory that was full of something else."""
    shapes = [array.shape for array in arrays]
    item = arrays[0].itemsize
    outputs = [np.full(shape, 77, arrays[0].dtype) for shape in move.shapes(shapes)]
    places = dict(zip(move.outputs, outputs, strict=True))
    places |= dict(zip(move.inputs, arrays, strict=True))
    for box in move.boxes(shapes, item):
        ends = places[box.source].ctypes.data, places[box.target].ctypes.data
        host._copy_one(Copied(box, *ends))
    return outputs


@pytest.mark.parametrize("kind", [np.float16, np.int64, np.uint8])
@pytest.mark.parametrize("name", CASES)
def test_boxes_are_what_onnx_says(name, kind):
    move, shapes = CASES[name]
    rng = np.random.default_rng(0)
    drawn = {
        n: rng.integers(0, 99, s).astype(kind) for n, s in zip(move.inputs, shapes, strict=True)
    }
    arrays = [drawn[name] for name in move.inputs]
    for found, want in zip(copied(move, arrays), reference(move, arrays), strict=True):
        np.testing.assert_array_equal(found, want)


def test_axes_that_lie_together_are_one():
    move = Move("Concat", {"axis": 2}, ("past", "new"), ("present",))
    past, new = move.boxes([(1, 8, 2048, 64), (1, 8, 1, 64)], 2)
    assert past == Box("past", "present", (0, 0), ((8, 262144, 262272), (262144, 1, 1)))
    assert new == Box("new", "present", (0, 262144), ((8, 128, 262272), (128, 1, 1)))
    assert past.unit(256, 512) == 16
    assert past.unit(256, 516) == 4


@pytest.mark.parametrize(
    ("move", "shapes"),
    [
        (Move("Concat", {"axis": 1}, ("a", "b"), ("y",)), [(2, 3), (3, 3)]),
        (Move("Concat", {"axis": 2}, ("a", "b"), ("y",)), [(2, 3), (2, 3)]),
        (Move("Split", {"axis": 0, "sizes": (1, 1)}, ("a",), ("x", "y")), [(3, 4)]),
        (Move("Transpose", {"perm": (1, 0)}, ("a",), ("y",)), [(2, 3, 4)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(move, shapes):
    with pytest.raises(InputError):
        move.shapes(shapes)
