"""Convolutions over patches side by side as GemmAct: for a library that has it, and only then."""

from __future__ import annotations

import pytest

from tests.proving import prove_widening
from tests.small import fuse_model, model

LIBRARY = ("GemmAct",)
INPUT = "T[B, 3, 8, 12] x"
FLAT = """
    c = Conv<strides = [4, 2]>(x, w, b)
    r = Reshape(c, [0, 5, 12])
    y = Transpose<perm = [0, 2, 1]>(r)"""
ROWS = """
    c = Conv<strides = [4, 2]>(x, w)
    y = Transpose<perm = [0, 2, 3, 1]>(c)"""
WEIGHTS = {"w": (5, 3, 4, 2), "b": (5,)}
SIZES = ({"B": 2}, {"B": 1})
TURNED = ["Reshape", "Transpose", "Reshape", "GemmAct"]


def made(text=FLAT, dtype="float16", library=LIBRARY, inputs=INPUT, **weights):
    return fuse_model(model(text, inputs, "T y", weights or WEIGHTS, dtype), library=library)


@pytest.mark.parametrize("text", [FLAT, ROWS])
def test_patches_become_one_product(text):
    outcome = made(text)
    assert outcome.ops == TURNED
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("inputs", "weight", "strides", "row", "perm"),
    [
        ("T[B, 2, 12] x", (5, 2, 3), "3", "", "0, 2, 1"),
        ("T[B, 2, 4, 6, 4] x", (5, 2, 2, 3, 1), "2, 3, 1", "r", "0, 2, 1"),
        ("T[B, 2, 4, 6, 4] x", (5, 2, 2, 3, 1), "2, 3, 1", "", "0, 2, 3, 4, 1"),
    ],
)
def test_patches_of_any_rank(inputs, weight, strides, row, perm):
    flat = "r = Reshape(c, [0, 5, 16])" if row else ""
    text = f"""
        c = Conv<strides = [{strides}]>(x, w)
        {flat}
        y = Transpose<perm = [{perm}]>({row or "c"})"""
    outcome = made(text, inputs=inputs, w=weight)
    assert outcome.ops == TURNED
    outcome.same(*SIZES)


@pytest.mark.parametrize(("dtype", "library"), [("float", LIBRARY), ("float16", ())])
def test_others_stay(dtype, library):
    assert made(dtype=dtype, library=library).ops == ["Conv", "Reshape", "Transpose"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("strides = [4, 2]", "strides = [2, 2]", "strides is"),
        ("strides = [4, 2]", "strides = [4, 2], pads = [0, 2, 0, 0]", "pads is"),
        ("strides = [4, 2]", "strides = [4, 2], dilations = [1, 2]", "dilations is"),
        ("x, w, b", "x, v, b", "group"),
        ("8, 12] x", "H, 12] x", "not known to be patches"),
        ("8, 12] x", "10, 12] x", "not known to be patches"),
    ],
)
def test_what_is_no_product_says_why(old, new, message):
    row = "[0, 5, -1]"
    if "group" in message:
        text, weights = FLAT.replace("strides", "group = 3, strides"), {"w": (6, 1, 4, 2)}
        weights["b"], row = (6,), "[0, 6, -1]"
    else:
        text, weights = FLAT.replace(old, new), WEIGHTS
    inputs = INPUT.replace(old, new)
    outcome = made(text.replace("[0, 5, 12]", row), inputs=inputs, **weights)
    assert "Conv" in outcome.ops
    assert any(message in miss.reason for miss in outcome.fused.misses)


@pytest.mark.parametrize(
    ("perm", "row"),
    [
        ("1, 0, 2", "[0, 5, 12]"),
        ("0, 2, 1", "[0, 10, 6]"),
        ("2, 0, 1", "[0, 5, 12]"),
        ("0, 2, 1", "[1, -1, 12]"),
    ],
)
def test_other_orders_of_the_patches_say_why(perm, row):
    text = FLAT.replace("0, 2, 1", perm).replace("[0, 5, 12]", row)
    outcome = made(text)
    assert "Conv" in outcome.ops
    assert outcome.fused.misses[-1].kind == "GemmAct"
    outcome.same(*SIZES)


def test_patches_that_something_else_reads_stay():
    text = FLAT.replace("y = Tr", "t = Tr") + "\ns = ReduceSum<keepdims = 0>(c)\ny = Add(t, s)"
    assert "Conv" in made(text).ops


def test_the_proof_finds_a_wrong_product(monkeypatch):
    given = model(FLAT, INPUT, "T y", WEIGHTS, "float16")
    assert not prove_widening(monkeypatch, "GemmAct", given).failed
    wrong = prove_widening(
        monkeypatch, "GemmAct", given, "Add(wide, bias_wide)", "Sub(wide, bias_wide)"
    )
    assert len(wrong.failed) == 1
