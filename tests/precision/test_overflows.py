"""Overflows in every place that a network has for them: finite and right, or refused and said."""

from __future__ import annotations

import numpy as np
import pytest

import opfuse
from tests.precision.converted import convert, feeds
from tests.small import model

PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])
ROUNDING = {"fp16": 1e-2, "bf16": 6e-2}


def signs(*shape: int) -> np.ndarray:
    return np.sign(np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def normal(scale: float, *shape: int) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


HEAVY = {  # statements, inputs, weights, and what is said of them in fp16
    "convolution": (
        "c = Conv(x, w)\ns = Mul(c, 1.0e-5)\ny = Conv(s, v)",
        "T[2, 3, 8, 8] x",
        {"w": 7e4 * signs(4, 3, 3, 3), "v": (4, 4, 1, 1)},
        "w holds 7e+04",
    ),
    "transposed convolution": (
        "c = ConvTranspose(x, w)\ns = Mul(c, 1.0e-5)\ny = Conv(s, v)",
        "T[2, 3, 8, 8] x",
        {"w": 7e4 * signs(3, 4, 3, 3), "v": (4, 4, 1, 1)},
        "w holds 7e+04",
    ),
    "bias of a Gemm": (
        "h = Gemm(x, w, b)\ns = Mul(h, 1.0e-3)\ny = MatMul(s, v)",
        "T[3, 16] x",
        {"w": (16, 8), "b": 7e4 * signs(8), "v": (8, 4)},
        "b holds 7e+04",
    ),
    "bias before an activation": (
        "p = MatMul(x, w)\nh = Add(p, b)\nr = Relu(h)\ns = Mul(r, 1.0e-3)\ny = MatMul(s, v)",
        "T[3, 16] x",
        {"w": (16, 8), "b": 7e4 * signs(8), "v": (8, 4)},
        "b holds 7e+04",
    ),
    "denormal embedding": (
        "e = Gather<axis=0>(w, ids)\ns = Mul(e, 1.0e6)\ny = MatMul(s, v)",
        "int64[5] ids",
        {"w": normal(1e-7, 50, 16), "v": (16, 4)},
        "values of w are below fp16's smallest normal number",
    ),
    "scores of 1e5": (
        "s = MatMul(x, w)\np = Softmax<axis=-1>(s)\ny = MatMul(p, v)",
        "T[4, 32] x",
        {"w": normal(2e4, 32, 16), "v": (16, 4)},
        "s reaches",
    ),
    "long sum": (
        "h = MatMul(x, w)\na = Abs(h)\ns = ReduceSum<keepdims=1>(a, [1])\nt = Mul(s, 1.0e-3)\n"
        "y = MatMul(t, v)",
        "T[1, 100000, 4] x",
        {"w": (4, 4), "v": (4, 4)},
        "s reaches",
    ),
    "square of 300": (
        "p = MatMul(x, w)\nh = Mul(p, 300.0)\nq = Pow(h, 2.0)\ns = Mul(q, 1.0e-5)\n"
        "y = MatMul(s, v)",
        "T[3, 16] x",
        {"w": (16, 8), "v": (8, 4)},
        "q reaches",
    ),
    "exponential of 20": (
        "p = MatMul(x, w)\nh = Mul(p, 8.0)\nq = Exp(h)\ns = Log(q)\ny = MatMul(s, v)",
        "T[3, 16] x",
        {"w": (16, 8), "v": (8, 4)},
        "q reaches",
    ),
    "squares inside of a length": (
        "p = MatMul(x, w)\nh = Mul(p, 500.0)\nn = ReduceL2<keepdims=1>(h, [-1])\n"
        "d = Div(h, n)\ny = MatMul(d, v)",
        "T[3, 16] x",
        {"w": (16, 16), "v": (16, 4)},
        "the squares in it add up to",
    ),
    "sum inside of a mean": (
        "p = MatMul(x, w)\nh = Mul(p, 900.0)\nn = ReduceMean<keepdims=1>(h, [-1])\n"
        "d = Sub(h, n)\ns = Mul(d, 1.0e-3)\ny = MatMul(s, v)",
        "T[3, 16] x",
        {"w": (16, 128), "v": (128, 4)},
        "the sum in it may reach",
    ),
    "gated activations": (
        "a = MatMul(x, w)\nb = MatMul(x, u)\ns = Sigmoid(a)\ng = Mul(a, s)\nm = Mul(g, b)\n"
        "y = MatMul(m, v)",
        "T[3, 16] x",
        {"w": normal(60, 16, 32), "u": normal(60, 16, 32), "v": normal(1e-3, 32, 16)},
        "reaches",
    ),
    "product of many terms": (
        "h = MatMul(x, w)\ns = Mul(h, 1.0e-4)\ny = MatMul(s, v)",
        "T[3, 4096] x",
        {"w": 300 * signs(4096, 8), "v": (8, 4)},
        "h reaches",
    ),
}


@PRECISIONS
@pytest.mark.parametrize("name", HEAVY)
def test_it_is_finite_and_right_and_said(name, precision, tmp_path):
    text, inputs, weights, says = HEAVY[name]
    planted = model(text, inputs, weights=weights)
    result = convert(planted, tmp_path, precision, prove=True)
    result.same(feeds(planted, seed=5), ROUNDING[precision])
    if precision == "fp16":
        assert any(says in reason for reason in result.kept.values()), result.kept


@PRECISIONS
def test_a_residual_stream_that_grows_to_1e5_over_its_layers(precision, tmp_path):
    text, last, weights = "", "x", {}
    for layer, scale in enumerate((1, 8, 64, 512, 4096, 32768)):
        text += f"n{layer} = LayerNormalization({last}, one, zero)\n"
        text += f"u{layer} = MatMul(n{layer}, up)\na{layer} = Relu(u{layer})\n"
        text += f"d{layer} = MatMul(a{layer}, down{layer})\nx{layer} = Add({last}, d{layer})\n"
        weights[f"down{layer}"] = normal(scale, 32, 16)
        last = f"x{layer}"
    text += f"n = LayerNormalization({last}, one, zero)\ny = MatMul(n, v)"
    ends = {"one": np.ones(16, np.float32), "zero": np.zeros(16, np.float32), "v": (16, 8)}
    planted = model(text, "T[2, 5, 16] x", weights={"up": (16, 32), **ends, **weights})
    result = convert(planted, tmp_path, precision, prove=True)
    result.same(feeds(planted, seed=5), 4 * ROUNDING[precision])
    if precision == "fp16":
        assert any("reaches" in reason for reason in result.kept.values())
        assert result.report["products"]["fp16"] >= 6


@PRECISIONS
def test_a_number_that_guards_a_division_stays_above_zero(precision, tmp_path):
    """1e-12 is 0 in fp16, and a row of zeros over it NaN; a fp32 island would cost two Casts."""
    text = "h = MatMul(x, w)\nn = ReduceL2<keepdims=1>(h, [-1])\n{guard}\nd = Div(h, c)\n"
    text += "y = MatMul(d, v)"
    for guard in ("c = Max(n, 1.0e-12)", "c = Clip(n, 1.0e-12)"):
        planted = model(
            text.format(guard=guard), "T[B, 16] x", weights={"w": (16, 16), "v": (16, 4)}
        )
        result = convert(planted, tmp_path, precision)
        drawn = feeds(planted, B=3)
        drawn["x"][1] = 0
        result.same(drawn, ROUNDING[precision])
        assert len(result.casts()) == 2


@PRECISIONS
def test_a_mean_that_hides_the_deviation_is_refused(precision, tmp_path):
    """3000 and a deviation of 1: the low types have one step of 2 and of 16 there."""
    text = "p = MatMul(x, w)\nh = Add(p, 3000.0)\nn = LayerNormalization(h, one, zero)\n"
    weights = {"one": np.ones(16, np.float32), "zero": np.zeros(16, np.float32)}
    planted = model(text + "y = MatMul(n, w)", "T[4, 16] x", weights={"w": (16, 16), **weights})
    planted.graph.node[2].name = "encoder/norm"
    where = r"it begins at encoder/norm \(LayerNormalization\): .*; h has values up to 3"
    with pytest.raises(opfuse.CheckFailed, match=f"does not compute what it did: .*{where}"):
        convert(planted, tmp_path, precision, prove=True)


def test_norms_of_weights_are_no_activations(tmp_path):
    """A convolution whose weights are normalised as it runs, as wav2vec's: no Cast for them."""
    text = "n = ReduceL2<keepdims=1>(v, [0, 1])\nu = Div(v, n)\nk = Mul(u, g)\ny = Conv(x, k)"
    planted = model(text, "T[1, 8, 40] x", weights={"v": (300, 8, 30), "g": (1, 1, 30)})
    result = convert(planted, tmp_path, prove=True)
    assert len(result.casts()) == 2
    assert "ReduceL2" not in result.ops
    result.same(feeds(planted), ROUNDING["fp16"])


CONVOLUTIONAL = """
    c = Conv<pads=[1, 1, 1, 1]>(x, k)
    i = InstanceNormalization(c, one, zero)
    r = HardSwish(i)
    m = MaxPool<kernel_shape=[2, 2]>(r)
    a, b = Split<axis=1>(m)
    s = Add(a, b)
    d = Conv(s, l)
    g = ReduceMean<axes=[2, 3], keepdims=0>(d)
    y = Gemm<transB=1>(g, w)
"""


@PRECISIONS
def test_a_convolutional_network_of_an_old_opset_has_no_island(precision, tmp_path):
    """Convolutions, poolings, and some activations take bf16 from opset 22 on only."""
    weights = {"k": (8, 3, 3, 3), "one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    weights |= {"l": (8, 4, 1, 1), "w": (5, 8)}
    planted = model(CONVOLUTIONAL, "T[2, 3, 8, 8] x", weights=weights, opset=17)
    result = convert(planted, tmp_path, precision, prove=True)
    assert len(result.casts()) == 2
    assert result.report["products"].get("fp32", 0) == 0
    assert result.after.opset_import[0].version == (22 if precision == "bf16" else 17)
    result.same(feeds(planted), 2 * ROUNDING[precision])


def test_an_opset_in_which_an_operator_means_something_else_is_not_raised(tmp_path):
    text = "c = Conv(x, k)\ng = GridSample(c, grid)\ny = Relu(g)"
    planted = model(text, "T[1, 3, 8, 8] x, T[1, 4, 4, 2] grid", weights={"k": (3, 3, 1, 1)})
    result = convert(planted, tmp_path, "bf16")
    assert result.after.opset_import[0].version == 18
    assert result.kept["c"] == "Conv does not take that type"


@pytest.mark.parametrize("op", ["HardSwish", "Mish", "Celu", "ConvTranspose"])
@PRECISIONS
def test_tensorrt_builds_what_it_is_given(op, precision, tmp_path):
    """TensorRT for RTX 1.7 imports no HardSwish or Mish in bf16, and no Celu in half precision."""
    pytest.importorskip("tensorrt_rtx")
    step = "d = ConvTranspose(c, t)" if op == "ConvTranspose" else f"d = {op}(c)"
    weights = {"k": (4, 3, 3, 3), "v": (4, 4, 1, 1)} | (
        {"t": (4, 4, 2, 2)} if "(c, t" in step else {}
    )
    planted = model(f"c = Conv(x, k)\n{step}\ny = Conv(d, v)", "T[2, 3, 8, 8] x", weights=weights)
    result = convert(planted, tmp_path, precision)
    result.same(feeds(planted), 2 * ROUNDING[precision])
    opfuse.build(tmp_path / "model.onnx", tmp_path / "a.engine", precision=precision, prove=False)


def test_a_branch_that_is_lost_in_what_it_is_added_to_needs_no_fp32(tmp_path):
    """ConvNeXt scales branches by 1e-6 before it is trained: in fp16 nothing is left of them."""
    text = "h = MatMul(x, w)\ns = Mul(h, scale)\nt = Transpose<perm=[0, 2, 1]>(s)\n"
    text += "u = Add(t, z)\ny = MatMul(u, v)"
    weights = {"w": (8, 8), "scale": np.full(8, 1e-6, np.float32), "v": (4, 4)}
    inputs = "T[2, 4, 8] x, T[2, 8, 4] z"
    result = convert(model(text, inputs, weights=weights), tmp_path, prove=True)
    assert result.kept == {}
    result.same(feeds(model(text, inputs, weights=weights)), ROUNDING["fp16"])
    alone = text.replace("u = Add(t, z)", "u = Mul(t, z)").replace(
        "y = ", "k = Mul(u, 1.0e6)\ny = "
    )
    alone = alone.replace("MatMul(u, v)", "MatMul(k, v)")
    result = convert(model(alone, inputs, weights=weights), tmp_path, prove=True)
    assert "values of scale are below fp16's smallest normal number" in result.kept["s"]


@pytest.mark.parametrize(("size", "kept"), [(1.0, False), (1e-4, True)])
def test_an_epsilon_counts_beside_its_own_size_only(size, kept, tmp_path):
    text = f"h = MatMul(x, w)\na = Abs(h)\nm = Mul(a, {size:e})\ne = Add(m, 1.0e-6)\n"
    text += "d = Div(m, e)\ny = MatMul(d, v)"
    planted = model(text, "T[3, 16] x", weights={"w": (16, 16), "v": (16, 4)})
    result = convert(planted, tmp_path, prove=True)
    assert ("e" in result.kept) == kept
    result.same(feeds(planted, seed=5), ROUNDING["fp16"])


@pytest.mark.parametrize(
    ("op", "inputs", "axes", "kept"),
    [
        ("ReduceMean", "T[1, 3, 40, 400] x", [2, 3], False),
        ("ReduceMean", "T[1, 3, 40, 400] x", [3], False),
        ("ReduceMean", "T[1, 3, H, W] x", [2, 3], False),
        ("ReduceL2", "T[1, 3, 20, 20] x", [2, 3], False),
        ("ReduceL1", "T[1, 3, H, 400] x", [3], False),
        ("ReduceL1", "T[1, 3, H, 400] x", [2], True),
        ("ReduceL1", "T[1, 3, 400, 400] x", [2, 3], True),
    ],
)
def test_a_sum_is_kept_that_an_input_makes_longer(op, inputs, axes, kept, tmp_path):
    """TensorRT adds up in fp32 (benchmarks/sums.py); what counts is whether the result fits."""
    text = f"c = Conv(x, k)\ng = {op}<keepdims=1>(c, {axes})\ny = Conv(g, l)"
    planted = model(text, inputs, weights={"k": normal(0.1, 8, 3, 1, 1), "l": (4, 8, 1, 1)})
    result = convert(planted, tmp_path)
    assert ("g" in result.kept) == kept, result.kept
