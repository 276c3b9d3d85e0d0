"""What counts as a difference."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from opfuse.numerics.compare import compare, tolerance

ROW = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)


def test_equal_arrays_do_not_differ():
    found = compare(ROW, ROW.copy())
    assert (found.max_abs, found.max_rel, found.reason) == (0, 0, "")
    assert found.cosine == pytest.approx(1)


def test_each_row_is_measured_by_itself():
    rows = np.concatenate([ROW, 100 * ROW])
    wrong = rows.copy()
    wrong[0] += 0.01
    assert compare(rows, wrong).max_rel == pytest.approx(0.01 / np.sqrt((ROW**2).mean()), rel=1e-3)


def test_an_outlier_does_not_excuse_its_row():
    spiked = ROW.copy()
    spiked[0, 0] = 1000
    wrong = spiked.copy()
    wrong[0, 1:] += 1
    assert compare(spiked, wrong).max_rel > 5 * 1 / 1000


def test_an_empty_row_is_measured_by_the_others():
    rows = np.concatenate([ROW, np.zeros_like(ROW)])
    wrong = rows + np.float32(1e-7)
    assert compare(rows, wrong).max_rel < 1e-3


def test_zeros_are_compared_absolutely():
    assert compare(np.zeros(8), np.full(8, 1e-9)).max_rel == pytest.approx(1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_stand_in_the_same_places(value):
    there = ROW.copy()
    there[0, 3] = value
    assert compare(there, there.copy()).reason == ""
    assert "1 of 64" in compare(there, ROW).reason
    assert "1 of 64" in compare(ROW, there).reason
    assert compare(ROW, there).max_rel == math.inf


def test_opposite_infinities_differ():
    assert "infinity" in compare(np.array([np.inf]), np.array([-np.inf])).reason


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_last_step_before_the_limit_is_infinity_or_not(dtype):
    top = np.array([ml_dtypes.finfo(dtype).max, 1], dtype)
    over = np.array([np.inf, 1], dtype)
    assert compare(top, over).reason == ""
    assert "infinity" in compare(top / dtype(4), over).reason


def test_shapes_and_types_must_agree():
    assert "shape" in compare(ROW, ROW[:, :3]).reason
    assert "type" in compare(ROW, ROW.astype(np.int64)).reason
    assert "2 of 3" in compare(np.array([1, 2, 3]), np.array([1, 0, 0])).reason


def test_arrays_without_elements_do_not_differ():
    assert compare(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).within(0)


def test_the_coarsest_type_sets_the_tolerance():
    assert tolerance([TensorProto.FLOAT, TensorProto.INT64]) == 1e-4
    assert tolerance([TensorProto.FLOAT, TensorProto.FLOAT16]) == 2e-2
    assert tolerance([TensorProto.BFLOAT16, TensorProto.FLOAT16]) == 8e-2
