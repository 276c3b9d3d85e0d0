"""Where the Casts stand, what stays in fp32 by rule, and what is left as it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from models import tiny
from opfuse.graph.protos import all_nodes
from tests.precision.converted import convert, feeds
from tests.small import model

PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])
TINY = {
    "llama": (tiny.llama, {"casts": 1}),
    "bert": (tiny.bert, {"casts": 1}),
    "vit": (tiny.vit, {"casts": 2}),
}


def no_litter(result) -> None:
    """No Cast of a Cast, none twice, none that changes nothing, and none that nothing reads."""
    graph = result.after.graph
    makers = {name: node for node in graph.node for name in node.output}
    read = {name for node in all_nodes(graph.node) for name in node.input}
    read |= {output.name for output in graph.output}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert not [c for c in casts if c.input[0] in makers and makers[c.input[0]].op_type == "Cast"]
    assert max(Counter((c.input[0], c.attribute[0].i) for c in casts).values(), default=1) == 1
    assert all(a != b for a, b in result.casts())
    assert {c.output[0] for c in casts} <= read
    weights = {tensor.name for tensor in graph.initializer}
    assert not [c for c in casts if c.input[0] in weights]


@PRECISIONS
@pytest.mark.parametrize("name", TINY)
def test_whole_models_have_casts_at_their_ends_only(name, precision, tmp_path):
    made, want = TINY[name]
    result = convert(made().model(), tmp_path, precision, prove=True)
    no_litter(result)
    assert result.report["casts"] == len(result.casts()) == want["casts"]
    assert result.report["products"].get("fp32", 0) == 0
    assert result.report["products"][precision] > 8


@PRECISIONS
def test_inputs_and_outputs_in_the_low_type_need_no_cast(precision, tmp_path):
    planted = model("h = MatMul(x, w)\ny = Relu(h)", "T[B, 8] x", weights={"w": (8, 4)})
    kept = convert(planted, tmp_path, precision)
    assert len(kept.casts()) == 2
    result = convert(planted, tmp_path, precision, io_precision=precision)
    assert result.ops == ["GemmAct"]
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    ends = (*result.after.graph.input, *result.after.graph.output)
    assert {info.type.tensor_type.elem_type for info in ends} == {low}
    result.same(feeds(planted, B=3))


ANGLES = """
    steps = Unsqueeze(position, [1])
    wide = Cast<to=1>(steps)
    {product}
    both = Concat<axis=-1>(angles, angles)
    cosine = Cos(both)
    sine = Sin(both)
    turns = Mul(x, cosine)
    more = Add(turns, sine)
    y = MatMul(more, w)
"""


@pytest.mark.parametrize(
    "product",
    ["angles = MatMul(wide, frequency)", 'angles = Einsum<equation="bi,ij->bj">(wide, frequency)',
     "angles = Mul(wide, frequency)"],
)  # fmt: skip
def test_positions_are_multiplied_in_fp32(product, tmp_path):
    """Position 4001 has no fp16 of its own, and its angle would be off by radians."""
    weights = {"frequency": (1, 4), "w": (8, 4)}
    planted = model(ANGLES.format(product=product), "T[B, 8] x, int64[B] position", weights=weights)
    result = convert(planted, tmp_path)
    result.same({"x": feeds(planted, B=3)["x"], "position": np.array([5, 4001, 60001])})
    types = result.types()
    (turned,) = [node.input[0] for node in result.after.graph.node if node.op_type == "Cos"]
    assert types[turned] == types["cosine"] == "float"
    no_litter(result)


def test_index_arithmetic_in_floats_stays_exact(tmp_path):
    text = """
        wide = Cast<to=1>(n)
        scaled = Mul(wide, 0.5)
        moved = Add(scaled, 3000.0)
        index = Cast<to=7>(moved)
        picked = Gather<axis=0>(table, index)
        y = MatMul(picked, w)
    """
    planted = model(text, "int64[B] n", weights={"table": (3010, 8), "w": (8, 4)})
    result = convert(planted, tmp_path)
    result.same({"n": np.array([3, 6, 9])})
    assert {result.types()[name] for name in ("scaled", "moved")} == {"float"}
    assert result.types()["table"] == "float16"
    no_litter(result)


def test_a_tensor_that_both_sides_read_is_cast_once(tmp_path):
    text = "h = MatMul(x, w)\na = Exp(h)\nb = Exp(a)\nc = MatMul(h, v)\nd = MatMul(c, v)\n"
    text += "s = Add(b, b)\ny = Log(s)\nz = MatMul(d, v)"
    planted = model(text, "T[B, 8] x", "T y, T z", weights={"w": (8, 8), "v": (8, 8)})
    result = convert(planted, tmp_path)
    no_litter(result)
    assert len(result.casts()) == 3  # x, h, and z
    result.same(feeds(planted, B=3), 2e-2)


def test_what_stands_between_fp32_operators_is_fp32(tmp_path):
    """Relu and Mul could run either way, and no Cast stands around them."""
    text = "a = Exp(x)\nb = Relu(a)\nc = Mul(b, 0.1)\nd = Log(c)\ny = MatMul(d, w)"
    planted = model(text, "T[B, 8] x", weights={"w": (8, 4)})
    result = convert(planted, tmp_path)
    assert {result.types()[name] for name in "abcd"} == {"float"}
    assert result.casts() == [("float", "float16"), ("float16", "float")]


def test_the_cast_stands_where_least_passes(tmp_path):
    """A row of many is cast behind the Slice that takes it."""
    text = "h = MatMul(x, w)\nlast = Slice(h, [-1], [1000], [0])\np = Softmax<axis=-1>(last)\n"
    text += "z = MatMul(h, v)"
    planted = model(text, "T[B, 8] x", "T p, T z", weights={"w": (8, 600), "v": (600, 4)})
    result = convert(planted, tmp_path)
    assert result.types()["last"] == "float16"
    no_litter(result)


def test_bodies_of_control_flow_stay_as_they_are(tmp_path):
    text = """
        h = MatMul(x, w)
        y0 = If (flag) <
            then_branch = a () => (float[B, 4] t) { t = Exp(h) },
            else_branch = b () => (float[B, 4] e) { e = Identity(h) }
        >
        y = MatMul(y0, v)
    """
    planted = model(text, "T[B, 8] x, bool flag", weights={"w": (8, 4), "v": (4, 4)})
    result = convert(planted, tmp_path)
    assert result.kept == {"y0": "has a body of its own"}
    for flag in (True, False):
        result.same(feeds(planted, B=3) | {"flag": np.array(flag)}, 1e-2)
    no_litter(result)


def test_a_body_reads_an_output_of_the_graph_in_its_old_type(tmp_path):
    text = """
        h = MatMul(x, w)
        y0 = If (flag) <
            then_branch = a () => (float[B, 4] t) { t = Neg(h) },
            else_branch = b () => (float[B, 4] e) { e = Abs(h) }
        >
        y = MatMul(y0, v)
    """
    planted = model(text, "T[B, 8] x, bool flag", "T h, T y", {"w": (8, 4), "v": (4, 4)})
    result = convert(planted, tmp_path)
    for io_precision in ("keep", "fp16"):
        result = convert(planted, tmp_path, io_precision=io_precision)
        for flag in (True, False):
            result.same(feeds(planted, B=3) | {"flag": np.array(flag)}, 1e-2)
        no_litter(result)


def test_a_convolutional_network_has_casts_at_its_ends_only(tmp_path):
    text = """
        c = Conv<pads=[1, 1, 1, 1]>(x, k)
        n = BatchNormalization(c, one, zero, zero, one)
        r = Relu(n)
        m = MaxPool<kernel_shape=[2, 2]>(r)
        d = Conv(m, l)
        g = GlobalAveragePool(d)
        f = Flatten(g)
        y = Gemm<transB=1>(f, w, b)
    """
    weights = {"k": (8, 3, 3, 3), "one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    weights |= {"l": (8, 8, 1, 1), "w": (5, 8), "b": (5,)}
    planted = model(text, "T[B, 3, 8, 8] x", weights=weights)
    result = convert(planted, tmp_path)
    assert result.casts() == [("float", "float16"), ("float16", "float")]
    assert result.kept == {}
    result.same(feeds(planted, B=2), 1e-2)


def test_squares_go_with_their_neighbours_and_powers_do_not(tmp_path):
    text = "h = MatMul(x, w)\nq = Pow(h, {e})\ny = MatMul(q, v)"
    weights = {"w": (8, 8), "v": (8, 4)}
    for exponent, kept in (("2.0", {}), ("7.0", {"q": "its result grows or shrinks much faster"})):
        planted = model(text.format(e=exponent), "T[B, 8] x", weights=weights)
        result = convert(planted, tmp_path)
        assert {name: reason[:39] for name, reason in result.kept.items()} == kept
        result.same(feeds(planted, B=3), 2e-2)


def test_a_model_of_two_types_keeps_what_is_low_and_loses_its_islands(tmp_path):
    text = """
        h = MatMul(x, w)
        wide = Cast<to=1>(h)
        two = Mul(wide, scale)
        narrow = Cast<to=10>(two)
        g = MatMul(narrow, v)
        other = Cast<to=1>(g)
        p = LogSoftmax<axis=-1>(other)
        y = Cast<to=10>(p)
    """
    weights = {"w": (8, 8), "v": (8, 8), "scale": np.float32(0.5)}
    planted = model(text, "T[B, 8] x", weights=weights, dtype="float16")
    result = convert(planted, tmp_path)
    assert result.types()["two"] == "float16"
    assert result.casts() == [("float16", "float"), ("float", "float16")]  # around the LogSoftmax
    assert result.report["casts_before"] == 4
    result.same(feeds(planted, B=3))


def test_quantised_products_stay_as_they_are(tmp_path):
    text = """
        q = QuantizeLinear(x, s, zero)
        d = DequantizeLinear(q, s, zero)
        h = MatMul(d, w)
        y = MatMul(h, v)
    """
    weights = {"s": np.float32(0.02), "zero": np.int8(0), "w": (8, 8), "v": (8, 4)}
    planted = model(text, "T[B, 8] x", weights=weights, opset=21)
    result = convert(planted, tmp_path)
    assert result.kept["h"] == "computes with quantised values"
    assert result.types()["y/fp16"] == "float16"
    result.same(feeds(planted, B=3), 2e-2)


def test_weights_keep_their_names_and_tied_ones_stay_one(tmp_path):
    text = "e = Gather<axis=0>(table, ids)\nt = Transpose<perm=[1, 0]>(table)\ny = MatMul(e, t)"
    planted = model(text, "int64[B] ids", weights={"table": (300, 300)})
    result = convert(planted, tmp_path)
    (table,) = [t for t in result.after.graph.initializer if len(t.dims) == 2]
    assert (table.name, table.data_type) == ("table", TensorProto.FLOAT16)


def test_a_weight_in_both_types_is_written_in_both(tmp_path):
    text = "a = MatMul(x, w)\ns = Softmax<axis=-1>(x)\nb = Exp(s)\nd = CumSum(w, axis)\n"
    text += "y = Add(b, d)\nz = MatMul(a, w)"
    weights = {"w": (8, 8), "axis": np.array(0)}
    planted = model(text, "T[8, 8] x", "T y, T z", weights=weights)
    result = convert(planted, tmp_path)
    kinds = {t.name: t.data_type for t in result.after.graph.initializer if "w" in t.name}
    assert kinds == {"w": TensorProto.FLOAT, "w/fp16": TensorProto.FLOAT16}


def test_the_same_model_gives_the_same_file(tmp_path):
    made = tiny.llama().model()
    first = convert(made, tmp_path).after.SerializeToString(deterministic=True)
    assert convert(made, tmp_path).after.SerializeToString(deterministic=True) == first


OPS = {
    "Relu": 1, "Exp": 1, "Softmax": 1, "Sigmoid": 1, "Neg": 1, "Tanh": 1,
    "Add": 2, "MatMul": 2, "Max": 2,
}  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 99), st.integers(0, 99)),
        min_size=1,
        max_size=12,
    ),
    st.sets(st.integers(0, 99), max_size=2),
)
def test_random_graphs(tmp_path_factory, steps, ends):
    """Every graph of these operators stays valid and right, and has no Cast too many."""
    values, lines = ["x", "w0"], ["w0 = Identity(w)"]
    for number, (op, a, b) in enumerate(steps):
        chosen = [values[index % len(values)] for index in (a, b)][: OPS[op]]
        lines.append(f"{op.lower()}_{number} = {op}({', '.join(chosen)})")
        values.append(f"{op.lower()}_{number}")
    outputs = sorted({values[-1], *(values[2:][index % len(steps)] for index in ends)})
    text = "\n".join(["x0 = Tanh(x)", *lines]).replace("(x,", "(x0,").replace("(x)", "(x0)")
    planted = model(text.replace("x0 = Tanh(x0)", "x0 = Tanh(x)").replace(", x)", ", x0)"),
                    "T[4, 4] x", ", ".join(f"T {name}" for name in outputs),
                    weights={"w": (4, 4)})  # fmt: skip
    result = convert(planted, tmp_path_factory.mktemp("random"))
    no_litter(result)
    onnx.checker.check_model(result.after, full_check=True)


def test_a_softmax_is_in_fp32_where_that_costs_no_cast(tmp_path):
    text = "h = MatMul(x, w)\np = Softmax<axis=-1>(h)\n{last}"
    weights = {"w": (8, 8), "v": (8, 4)}
    for last, element in (("y = MatMul(p, v)", "float16"), ("y = Neg(p)", "float")):
        planted = model(text.format(last=last), "T[B, 8] x", weights=weights)
        result = convert(planted, tmp_path)
        assert result.types()["p"] == element
        assert len(result.casts()) == 2
        result.same(feeds(planted, B=3), 4e-3)


MEANS = {
    "means": ("m = ReduceMean<keepdims=1>(h, [-1])", "e = ReduceMean<keepdims=1>(q, [-1])"),
    "sums": (
        "s = ReduceSum<keepdims=1>(h, [-1])\nm = Mul(s, 0.015625)",
        "t = ReduceSum<keepdims=1>(q, [-1])\ne = Mul(0.015625, t)",
    ),
}


@PRECISIONS
@pytest.mark.parametrize("square", ["Mul(HERE, HERE)", "Pow(HERE, 2.0)"])
@pytest.mark.parametrize("means", MEANS)
def test_a_variance_from_two_large_means_is_taken_in_fp32(means, square, precision, tmp_path):
    """The difference of a mean of squares and the square of a mean has few digits of theirs."""
    mean, of_squares = MEANS[means]
    text = f"""
    product = MatMul(x, w)  h = Add(product, 3.0)  {mean}
    q = {square.replace("HERE", "h")}  {of_squares}
    mm = {square.replace("HERE", "m")}  variance = Sub(e, mm)
    more = Add(variance, 0.001)  root = Sqrt(more)  d = Sub(h, m)  n = Div(d, root)
    y = MatMul(n, v)"""
    weights = {"w": np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32) / 4}
    weights["v"] = (64, 4)
    result = convert(model(text, "T[16, 16] x", weights=weights), tmp_path, precision)
    types = result.types()
    assert {types[name] for name in ("m", "q", "e", "mm", "variance")} == {"float"}
    result.same(feeds(result.before, seed=5))
