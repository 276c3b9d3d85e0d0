"""GroupNormSilu: every spelling fuses, every near-miss says why, and the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusions.spellings import SILU, spell
from tests.small import Outcome, fuse_model, model

GROUPS, CHANNELS = 2, 6
SIZES = ({"B": 2, "H": 5, "W": 3}, {"B": 1, "H": 1, "W": 2}, {"B": 3, "H": 4, "W": 4})
X = f"T[B, {CHANNELS}, H, W] x, T[B, {CHANNELS}, H, W] other"
Y = f"T[B, {CHANNELS}, H, W] y"
EXPORTED = """
    grouped = Reshape(x, [0, 2, -1])
    unit = InstanceNormalization<epsilon=1.0e-3>(grouped, ones, zeros)
    shape = Shape(x)
    restored = Reshape(unit, shape)
    scaled = Mul(restored, gamma)
    n = Add(scaled, beta)
"""
WEIGHTS = {
    "ones": np.ones(2, np.float32),
    "zeros": np.zeros(2, np.float32),
    "gamma": (CHANNELS, 1, 1),
    "beta": (CHANNELS, 1, 1),
    "flat_gamma": (CHANNELS,),
    "flat_beta": (CHANNELS,),
}
STANDARD = "n = GroupNormalization<num_groups=2, epsilon=1.0e-3>(x, {g}, {b})\n"
END = spell(SILU["mul"], "n", "y")


def group_norm(text, inputs=X, outputs="T y", *, dtype="float", opset=18, **weights):
    return fuse_model(model(text, inputs, outputs, {**WEIGHTS, **weights}, dtype, opset))


def fuses(outcome: Outcome) -> Outcome:
    assert outcome.ops == ["GroupNormSilu"]
    assert outcome.attribute("GroupNormSilu", "num_groups") == GROUPS
    assert outcome.attribute("GroupNormSilu", "epsilon") == pytest.approx(1e-3)
    outcome.same(*SIZES)
    return outcome


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
@pytest.mark.parametrize("silu", SILU)
def test_what_torch_exports_fuses(silu, opset):
    fuses(group_norm(EXPORTED + spell(SILU[silu], "n", "y"), opset=opset))


def test_swish():
    outcome = group_norm(EXPORTED + "y = Swish(n)", opset=24)
    assert outcome.ops == ["GroupNormSilu"]


def test_operands_swapped_and_weights_of_rank_4():
    text = EXPORTED.replace("restored, gamma", "gamma, restored").replace(
        "scaled, beta", "beta, scaled"
    )
    shape = (1, CHANNELS, 1, 1)
    fuses(group_norm(text + END, gamma=shape, beta=shape))


def test_weights_that_are_reshaped_as_the_model_runs():
    inputs = f"{X}, T[{CHANNELS}] g"
    text = "wide = Unsqueeze(g, [1, 2])\n" + EXPORTED.replace("gamma", "wide") + END
    outcome = group_norm(text, inputs)
    assert outcome.counts == {"GroupNormSilu": 1}
    outcome.same(*SIZES)


def test_the_standard_operator_by_channel():
    text = STANDARD.format(g="flat_gamma", b="flat_beta") + END
    fuses(group_norm(text, outputs=Y, opset=21))


def test_the_standard_operator_by_group():
    text = STANDARD.format(g="per_group", b="per_group") + END
    outcome = group_norm(text, outputs=Y, opset=18, per_group=(GROUPS,))
    assert outcome.counts == {"GroupNormSilu": 1}
    outcome.same(*SIZES)


def test_a_signal_with_one_axis():
    text = EXPORTED + END
    outcome = group_norm(text, "T[B, 6, W] x", gamma=(CHANNELS, 1), beta=(CHANNELS, 1))
    fuses(outcome)


def test_the_fp32_island_of_an_fp16_model():
    text = "wide = Cast<to=1>(x)\n" + EXPORTED.replace("(x, [0", "(wide, [0")
    text += "narrow = Cast<to=10>(n)\n" + spell(SILU["mul"], "narrow", "y")
    weights = {
        name: np.random.default_rng(0).normal(size=(CHANNELS, 1, 1)).astype(np.float32)
        for name in ("gamma", "beta")
    }
    outcome = group_norm(text, dtype="float16", **weights)
    assert outcome.counts == {"GroupNormSilu": 1}
    outcome.same(*SIZES)


@pytest.mark.parametrize("layout", [0, 1])
def test_the_operator_of_onnxruntime(layout):
    """It has no CPU kernel: what it becomes is compared with what torch exports."""
    turns = ("a = Transpose<perm=[0, 3, 1, 2]>(x)\n", "y = Transpose<perm=[0, 2, 3, 1]>(z)\n")
    inputs = f"T[B, H, W, {CHANNELS}] x" if layout else f"T[B, {CHANNELS}, H, W] x"
    whole = EXPORTED + spell(SILU["mul"], "n", "z" if layout else "y")
    want = turns[0] + whole.replace("(x", "(a") + turns[1] if layout else whole
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(size=CHANNELS).astype(np.float32)
        for name in ("flat_gamma", "flat_beta")
    }
    want = f"g = Unsqueeze(flat_gamma, [1, 2])\nb = Unsqueeze(flat_beta, [1, 2])\n{want}"
    want = want.replace("restored, gamma", "restored, g").replace("scaled, beta", "scaled, b")
    have = (
        f"y = com.microsoft.GroupNorm<groups=2, activation=1, epsilon=1.0e-3, "
        f"channels_last={layout}>(x, flat_gamma, flat_beta)"
    )
    before = group_norm(want, inputs, **weights)
    after = fuse_model(model(have, inputs, inputs.replace(" x", " y"), weights))
    assert before.counts == after.counts == {"GroupNormSilu": 1}
    Outcome(before.before, after.after, after.fused).same(*SIZES)


REFUSED = {
    "groups that do not divide": (
        STANDARD.replace("=2", "=4").format(g="flat_gamma", b="flat_beta"),
        {"opset": 21, "outputs": Y},
        "n",
        "6 channels do not divide by 4 groups",
    ),
    "another scale of the groups": (
        EXPORTED,
        {"ones": np.full(2, 2.0, np.float32)},
        "unit",
        "ones is not 2 times 1",
    ),
    "a bias of the groups": (
        EXPORTED,
        {"zeros": np.ones(2, np.float32)},
        "unit",
        "zeros is not 2 times 0",
    ),
    "another order of axes": (
        EXPORTED.replace("[0, 2, -1]", "[2, 2, -1]"),
        {},
        "grouped",
        "want [batch, groups, ...]",
    ),
    "another shape": (
        EXPORTED.replace("Reshape(unit, shape)", "Reshape(unit, [0, 6, 1, -1])"),
        {},
        "restored",
        "of the groups, want x's",
    ),
    "one gamma for all": (EXPORTED, {"gamma": (1, 1, 1)}, "scaled", "want (6, 1, 1)"),
    "a gamma of positions": (EXPORTED, {"gamma": (6, 1, 3)}, "scaled", "want (6, 1, 1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case):
    text, options, node, reason = REFUSED[case]
    outcome = group_norm(text + END, **options)
    outcome.refused("GroupNormSilu", node, reason)


def test_symbolic_channels_are_refused():
    outcome = group_norm(EXPORTED + END, X.replace(f"{CHANNELS},", "C,"))
    outcome.refused("GroupNormSilu", "y", "the number of channels is C, want a number")


@pytest.mark.parametrize("inner", ["unit", "restored", "scaled", "n"])
def test_a_graph_output_inside_is_refused(inner):
    outcome = group_norm(EXPORTED + END, outputs=f"T y, T {inner}")
    outcome.refused("GroupNormSilu", inner, f"{inner} inside it leaves the graph")
    outcome.same(*SIZES)


def test_a_second_reader_is_refused():
    outcome = group_norm(EXPORTED + END + "z = Neg(n)", outputs="T y, T z")
    outcome.refused("GroupNormSilu", "z", "n inside it is also read by")
    outcome.same(*SIZES)


def test_the_sigmoid_of_another_tensor_stays():
    outcome = group_norm(EXPORTED + "s = Sigmoid(other)\ny = Mul(n, s)")
    assert not outcome.counts
    outcome.same(*SIZES)


def test_another_slope_behind_the_operator_is_refused():
    text = """
        n = GroupNormalization<num_groups=2>(x, g, b)
        steep = Mul(n, 1.3)
        s = Sigmoid(steep)
        y = Mul(n, s)
    """
    weights = {"g": (4,), "b": (4,)}
    outcome = fuse_model(model(text, "T[B, 4, 3, 3] x", "T y", weights, opset=21))
    outcome.refused("GroupNormSilu", "steep", "is Mul")
