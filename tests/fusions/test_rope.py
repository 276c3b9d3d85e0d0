"""Rope: halves of the last axis turned by cos and sin; other rotations are left alone."""

from __future__ import annotations

import re

import pytest

from tests.small import fuse_model, model

X = "T[B, 4, S, 6] x"
CACHE = "T[B, 1, S, 6] cos, T[B, 1, S, 6] sin"
HALVES = {
    "slices": "low = Slice(x, [0], [3], [3])\nhigh = Slice(x, [3], [9223372036854775807], [3])\n",
    "steps": "low = Slice(x, [0], [3], [-1], [1])\nhigh = Slice(x, [3], [6], [-1], [1])\n",
    "negative": "low = Slice(x, [-6], [-3], [3])\nhigh = Slice(x, [-3], [6], [3])\n",
    "split": "low, high = Split<axis=-1, num_outputs=2>(x)\n",
    "split sizes": "low, high = Split<axis=3>(x, [3, 3])\n",
}
TURN = """
    minus = Neg(high)
    turned = Concat<axis=-1>(minus, low)
    straight = Mul(x, cos)
    across = Mul(turned, sin)
    y = Add(straight, across)
"""
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def rope(text, inputs=f"{X}, {CACHE}", *, dtype="float", outputs="T y", opset=18, **weights):
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset))


@pytest.mark.parametrize("halves", HALVES)
def test_every_spelling_fuses(halves):
    outcome = rope(HALVES[halves] + TURN)
    assert outcome.ops == ["Rope"]
    assert outcome.counts == {"Rope": 1}
    assert outcome.attribute("Rope", "rotary_dim") == 6
    assert outcome.attribute("Rope", "num_heads") == 4
    outcome.same(*SIZES)


def test_operands_in_the_other_order():
    text = TURN.replace("Mul(x, cos)", "Mul(cos, x)").replace(
        "Mul(turned, sin)", "Mul(sin, turned)"
    )
    outcome = rope(HALVES["slices"] + text.replace("straight, across", "across, straight"))
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


def test_opset_13():
    outcome = rope(HALVES["split"].replace(", num_outputs=2", "") + TURN, opset=13)
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


def test_fp16():
    outcome = rope(HALVES["slices"] + TURN, dtype="float16")
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["S, 6", "1, 1, S, 6", "B, 4, S, 6"])
def test_caches_of_every_shape(shape):
    outcome = rope(HALVES["slices"] + TURN, f"{X}, T[{shape}] cos, T[{shape}] sin")
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


def test_heads_behind_the_positions():
    inputs = "T[B, S, 4, 6] x, T[B, S, 1, 6] cos, T[B, S, 1, 6] sin"
    outcome = rope(HALVES["slices"] + TURN, inputs)
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


WHOLE = "T[B, 4, S, 9] whole"
PARTS = {
    "slices": "x = Slice(whole, [0], [6], [3])\nrest = Slice(whole, [6], [9], [3])\n",
    "split": "x, rest = Split<axis=-1>(whole, [6, 3])\n",
}
TOGETHER = TURN.replace("y =", "t =") + "y = Concat<axis=-1>(t, rest)\n"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("halves", HALVES)
@pytest.mark.parametrize("parts", PARTS)
def test_a_part_of_each_head(parts, halves, dtype):
    """GPT-NeoX turns the front of each head and carries the rest along."""
    outcome = rope(PARTS[parts] + HALVES[halves] + TOGETHER, f"{WHOLE}, {CACHE}", dtype=dtype)
    assert outcome.ops == ["Rope"]
    assert outcome.counts == {"Rope": 1}
    assert outcome.attribute("Rope", "rotary_dim") == 6
    assert outcome.attribute("Rope", "head_size") == 9
    outcome.same(*SIZES)


def test_heads_that_turn_whole_beside_some_that_do_not():
    """One definition serves both."""
    text = HALVES["slices"] + TURN
    for name in ("low", "high", "minus", "turned", "straight", "across", "x", "y"):
        text = re.sub(rf"\b{name}\b", f"{name}2", text)
    text += PARTS["slices"] + HALVES["slices"] + TOGETHER
    outcome = rope(text, f"{WHOLE}, T[B, 2, S, 6] x2, {CACHE}", outputs="T y, T y2")
    assert outcome.ops == ["Rope", "Rope"]
    outcome.same(*SIZES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TOGETHER.replace("t, rest", "rest, t"), ""),
        (TOGETHER.replace("axis=-1>(t", "axis=2>(t").replace("rest)", "x)"), ""),
        (TOGETHER + "z = Neg(t)", "t inside it is also read by"),
    ],
    ids=["behind the rest", "along another axis", "turned part needed"],
)
def test_a_rest_that_is_none_stays_apart(text, reason):
    more = ", T z" if "z =" in text else ""
    outcome = rope(
        PARTS["slices"] + HALVES["slices"] + text, f"{WHOLE}, {CACHE}", outputs=f"T y{more}"
    )
    assert "Concat" in outcome.ops
    assert outcome.counts == {"Rope": 1}
    assert not reason or any(reason in miss.reason for miss in outcome.fused.misses)
    outcome.same(*SIZES)


NOT_THE_FRONT = {
    "another rest": (PARTS["slices"].replace("[6], [9]", "[5], [8]"), "takes 5:8:1"),
    "the end": (PARTS["slices"].replace("[0], [6]", "[3], [9]"), "takes 3:9:1"),
    "three parts": (
        "x, rest, more = Split<axis=-1>(whole, [6, 2, 1])\n",
        "into the part that turns",
    ),
}


@pytest.mark.parametrize("case", NOT_THE_FRONT)
def test_a_part_that_is_not_the_front_stays_apart(case):
    parts, reason = NOT_THE_FRONT[case]
    outcome = rope(parts + HALVES["slices"] + TOGETHER, f"{WHOLE}, {CACHE}")
    assert "Concat" in outcome.ops
    assert any(reason in miss.reason for miss in outcome.fused.misses)
    outcome.same(*SIZES)


def test_heads_are_narrowed_to_the_type_of_their_angles_before():
    """The kernels take cos and sin in x's type or in fp32, so the Cast stays outside."""
    text = re.sub(r"\(x\b", "(narrow", HALVES["slices"] + TURN).replace("y =", "sum =")
    text = f"narrow = Cast<to=10>(x)\n{text}y = Cast<to=1>(sum)\n"
    outcome = rope(text, f"{X}, float16[B, 1, S, 6] cos, float16[B, 1, S, 6] sin")
    assert outcome.ops == ["Cast", "Rope", "Cast"]


def test_q_and_k_share_their_caches():
    second = TURN
    for name in ("minus", "turned", "straight", "across", "low", "high", "y"):
        second = second.replace(name, f"{name}2")
    second = second.replace("Mul(x,", "Mul(k,")
    text = HALVES["slices"] + TURN
    text += HALVES["slices"].replace("low", "low2").replace("high", "high2").replace("(x,", "(k,")
    outcome = rope(text + second, f"{X}, T[B, 2, S, 6] k, {CACHE}", outputs="T y, T y2")
    assert outcome.ops == ["Rope", "Rope"]
    outcome.same(*SIZES)


NEIGHBOURS = "low = Slice(x, [0], [6], [3], [2])\nhigh = Slice(x, [1], [6], [3], [2])\n"
UNEQUAL = "low, high = Split<axis=-1>(x, [2, 4])\n"
OTHER_HALF = "low = Slice(x, [3], [6], [3])\nhigh = Slice(x, [0], [3], [3])\n"
REFUSED = {
    "neighbours": (NEIGHBOURS + TURN, "low", "takes 0:6:2 of axis 3, want 0:3:1 of the last"),
    "halves swapped": (OTHER_HALF + TURN, "low", "takes 3:6:1 of axis 3, want 0:3:1 of the last"),
    "unequal": (UNEQUAL + TURN, "low", "does not split into two equal halves"),
    "minus the low half": (
        HALVES["slices"]
        + TURN.replace("Neg(high)", "Neg(low)").replace("minus, low", "minus, high"),
        "high",
        "want 0:3:1 of the last",
    ),
    "minus the first output": (
        HALVES["split"]
        + TURN.replace("Neg(high)", "Neg(low)").replace("minus, low", "minus, high"),
        "low",
        "low is Split, want Slice",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, node, reason = REFUSED[case]
    outcome = rope(text)
    outcome.refused("Rope", node, reason)
    outcome.same(*SIZES)


def test_a_turn_of_another_axis_is_refused():
    text = "low = Slice(x, [0], [3], [1])\nhigh = Slice(x, [3], [6], [1])\n"
    text += TURN.replace("axis=-1", "axis=1")
    outcome = rope(text, "T[B, 6, S, 6] x, T[B, 1, S, 6] cos, T[B, 1, S, 6] sin")
    outcome.refused("Rope", "turned", "works along axis 1, want the last of 4")
    outcome.same(*SIZES)


def test_the_turn_of_another_tensor_is_refused():
    outcome = rope(
        HALVES["slices"] + TURN.replace("Mul(x,", "Mul(k,"), f"{X}, T[B, 4, S, 6] k, {CACHE}"
    )
    outcome.refused("Rope", "y", "the operands are not the tensors expected")
    outcome.same(*SIZES)


@pytest.mark.parametrize("shape", ["C, 1, S, 6", "B, 1, P, 6", "B, H, S, 6", "B, 1, S, 1"])
def test_a_cache_of_unprovable_shape_is_refused(shape):
    outcome = rope(HALVES["slices"] + TURN, f"{X}, T[B, 1, S, 6] cos, T[{shape}] sin")
    outcome.refused("Rope", "y", "which does not provably broadcast to")


def test_bounds_that_are_not_known_are_refused():
    text = HALVES["slices"].replace("x, [0], [3]", "x, [0], end")
    outcome = rope(text + TURN, f"{X}, {CACHE}, int64[1] end")
    assert outcome.counts == {}


ISLAND = """
    x = Cast<to=1>(narrow)
    low = Slice(x, [0], [3], [3])
    high = Slice(x, [3], [6], [3])
"""


def test_the_fp32_island_of_an_fp16_model():
    text = ISLAND + TURN.replace("y =", "whole =") + "y = Cast<to=10>(whole)"
    inputs = f"T[B, 4, S, 6] narrow, {CACHE.replace('T', 'float')}"
    outcome = rope(text, inputs, dtype="float16")
    assert outcome.ops == ["Rope"]
    outcome.same(*SIZES)


def test_an_fp32_island_that_does_not_end_here():
    outcome = rope(ISLAND + TURN, f"float16[B, 4, S, 6] narrow, {CACHE}")
    assert outcome.ops == ["Cast", "Rope"]
    outcome.same(*SIZES)


def test_x_that_was_narrowed_before():
    text = HALVES["slices"].replace("(x,", "(n,") + TURN.replace("Mul(x, cos)", "Mul(n, cos)")
    outcome = rope("n = Cast<to=10>(x)\n" + text, f"float{X[1:]}, {CACHE}", dtype="float16")
    assert outcome.ops == ["Cast", "Rope"]
    outcome.same(*SIZES)


PAIRS = """
    even = Slice(x, [0], [9223372036854775807], [3], [2])
    odd = Slice(x, [1], [9223372036854775807], [3], [2])
    minus = Neg(odd)
    first = Unsqueeze(minus, [-1])
    second = Unsqueeze(even, [-1])
    paired = Concat<axis=-1>(first, second)
    turned = Reshape(paired, [0, 0, 0, 6])
    straight = Mul(x, cos)
    across = Mul(turned, sin)
    y = Add(straight, across)
"""


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_neighbours(dtype):
    outcome = rope(PAIRS, dtype=dtype)
    assert outcome.ops == ["Rope"]
    assert outcome.attribute("Rope", "interleaved") == 1
    outcome.same(*SIZES)


def test_neighbours_in_the_wrong_order_stay():
    outcome = rope(PAIRS.replace("(first, second)", "(second, first)"))
    assert outcome.counts == {}
    outcome.same(*SIZES)


def test_neighbours_laid_out_as_halves_are_refused():
    """[-odd..., even...] behind a Transpose is no pair beside the other."""
    text = PAIRS.replace("(minus, [-1])", "(minus, [3])").replace("(even, [-1])", "(even, [3])")
    text = text.replace("Concat<axis=-1>", "Concat<axis=3>")
    outcome = rope(text)
    assert outcome.counts == {}
    outcome.same(*SIZES)


def test_halves_and_neighbours_in_one_model():
    """One op has one function, so the second way of turning stays and says so."""
    second = PAIRS
    for name in ("minus", "turned", "straight", "across", "y"):
        second = second.replace(f"{name} =", f"{name}2 =").replace(f"({name}", f"({name}2")
        second = second.replace(f", {name})", f", {name}2)")
    text = HALVES["slices"] + TURN + second.replace("(x,", "(k,")
    outcome = rope(text, f"{X}, T[B, 4, S, 6] k, {CACHE}", outputs="T y, T y2")
    assert outcome.counts == {"Rope": 1}
    outcome.refused_at("y2", "Rope stands for interleaved=0 in this model already")
    outcome.same(*SIZES)


@pytest.mark.parametrize("inner", ["turned", "straight", "across"])
def test_a_result_inside_that_leaves_the_graph(inner):
    outcome = rope(HALVES["slices"] + TURN, outputs=f"T y, T {inner}")
    if inner == "turned":  # cheap to compute again
        assert outcome.counts == {"Rope": 1}
    else:
        outcome.refused("Rope", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = rope(HALVES["slices"] + TURN + "z = Neg(across)", outputs="T y, T z")
    outcome.refused("Rope", "z", "across inside it is also read by z")


NORMS = {
    "RmsNorm": """
        square = Mul(r, r)
        mean = ReduceMean(square, [-1])
        variance = Add(mean, 1.0e-6)
        root = Sqrt(variance)
        unit = Div(r, root)
        y = Mul(unit, gamma)""",
    "LayerNormalization": "y = LayerNormalization<axis=-1>(r, gamma)",
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_behind_it_takes_its_sum_for_no_residual(norm):
    """Hunyuan normalises q and k behind the rope."""
    outcome = rope(HALVES["slices"] + TURN.replace("y =", "r =") + NORMS[norm], gamma=(6,))
    assert outcome.counts == {"Rope": 1, norm: 1}
    outcome.same(*SIZES)


UNBOUND = {
    "slices": """
        p = Reshape(x, [0, 0, -1, 3, 2])
        e = Slice(p, [0], [1], [-1])
        even = Squeeze(e, [4])
        o = Slice(p, [1], [2], [4], [1])
        odd = Squeeze(o, [-1])
    """,
    "gathers": """
        p = Reshape(x, [0, 0, -1, 3, 2])
        zero = Constant<value = int64 {0}>()
        one = Constant<value = int64 {1}>()
        even = Gather<axis=-1>(p, zero)
        odd = Gather<axis=4>(p, one)
    """,
}


@pytest.mark.parametrize("parts", UNBOUND)
def test_pairs_that_are_an_axis_of_their_own(parts):
    """As diffusers unbinds them."""
    text = """
        minus = Neg(odd)
        first = Unsqueeze(minus, [-1])
        second = Unsqueeze(even, [-1])
        stacked = Concat<axis=-1>(first, second)
        turned = Reshape(stacked, [0, 0, -1, 6])
        straight = Mul(x, cos)
        across = Mul(turned, sin)
        y = Add(straight, across)
    """
    outcome = rope(UNBOUND[parts] + text)
    assert outcome.ops == ["Rope"]
    assert outcome.attribute("Rope", "interleaved") == 1
    outcome.same(*SIZES)


def test_halves_that_are_widened_after_they_are_turned():
    """OLMo 2 in fp16: cos and sin are fp32, and the turned x is cast by itself."""
    text = """
        wide = Cast<to=1>(x)
        turned32 = Cast<to=1>(turned)
        straight = Mul(wide, cos)
        across = Mul(turned32, sin)
        total = Add(straight, across)
        y = Cast<to=10>(total)
    """
    head = TURN.split("straight =")[0]
    cache = "float[B, 1, S, 6] cos, float[B, 1, S, 6] sin"
    outcome = rope(HALVES["slices"] + head + text, f"{X}, {cache}", dtype="float16")
    assert outcome.counts == {"Rope": 1}
    outcome.same(*SIZES)
