"""Normal form: one spelling, the same numbers, and nothing that the model needs is lost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.small import compare, draw, fuse_model, model, session

NORM = """
    square = Mul({x}, {x})
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-5)
    root = Sqrt(variance)
    unit = Div({x}, root)
    {y} = Mul(unit, gamma)
"""
X = "T[S, 4] x"


def norm(x="x", y="y") -> str:
    return NORM.replace("{x}", x).replace("{y}", y)


def normalised(text, inputs=X, outputs="T y", *, opset=17, functions="", dtype="float"):
    weights = {"gamma": (4,)} if "gamma" in text else {}
    return fuse_model(model(text, inputs, outputs, weights, dtype, opset, functions))


@pytest.mark.parametrize(
    "text",
    [
        "y = Identity(x)",
        "h = Identity(x)\ni = Identity(h)\ny = Neg(i)",
        "h = Mul(x, 1.0)\ni = Add(h, 0.0)\ny = Neg(i)",
        "h = Cast<to=1>(x)\ny = Neg(h)",
        "h = Transpose<perm=[1, 0]>(x)\ni = Transpose<perm=[1, 0]>(h)\ny = Neg(i)",
        "h = Dropout(x)\ny = Neg(h)",
        "h = Unsqueeze(x, [0])\ni = Squeeze(h, [0])\ny = Neg(i)",
        "h = Concat<axis=0>(x)\ny = Neg(h)",
        "h = Slice(x, [0], [9223372036854775807], [1])\ny = Neg(h)",
    ],
)
def test_what_does_nothing_is_dropped(text):
    outcome = normalised(text)
    assert outcome.ops == (["Identity"] if text == "y = Identity(x)" else ["Neg"])
    outcome.same({"S": 1}, {"S": 5})


@pytest.mark.parametrize("name", ["RmsNorm", "GemmAct", "Strange"])
def test_a_function_that_only_has_our_name_is_taken_apart(name):
    text = f'y = opfuse.{name}<activation="odd">(x, gamma)'
    own = f"""<domain: "opfuse", opset_import: ["" : 17]>
        {name} <activation>(a, b) => (c) {{ c = Sub(a, b) }}"""
    outcome = normalised(text, functions=own)
    assert outcome.ops == ["Sub"]
    outcome.same({"S": 3})


def test_equal_computations_are_done_once():
    outcome = normalised("a = Exp(x)\nb = Exp(x)\ny = Add(a, b)")
    assert outcome.ops == ["Exp", "Add"]
    outcome.same({"S": 3})


def test_constants_are_computed():
    outcome = normalised("a = Add(2.0, 3.0)\nb = Sqrt(a)\ny = Mul(x, b)")
    assert outcome.ops == ["Mul"]
    outcome.same({"S": 3})


def test_random_numbers_are_not_computed_ahead():
    outcome = normalised("a = RandomNormalLike(x)\nb = RandomNormalLike(x)\ny = Add(a, b)")
    assert outcome.ops.count("RandomNormalLike") == 2


def test_local_functions_are_written_out():
    functions = """
        <domain: "local", opset_import: ["" : 17]>
        Norm (a, g) => (b) {
            e = Constant<value_float = 0.00001>()
            square = Mul(a, a)
            mean = ReduceMean<axes = [-1]>(square)
            variance = Add(mean, e)
            root = Sqrt(variance)
            unit = Div(a, root)
            b = Mul(unit, g)
        }
    """
    made = model(
        "h = local.Norm(x, gamma)\ny = local.Norm(h, gamma)",
        X,
        weights={"gamma": (4,)},
        opset=17,
        functions=functions,
    )
    outcome = fuse_model(made)
    assert outcome.ops == ["RmsNorm", "RmsNorm"]
    assert [f.name for f in outcome.after.functions] == ["RmsNorm"]
    outcome.same({"S": 3})


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset_from_13_up(opset):
    axes = "<axes=[-1]>(square)" if opset < 18 else "(square, [-1])"
    text = norm().replace("<axes=[-1]>(square)", axes)
    outcome = normalised(text, opset=opset)
    assert outcome.ops == ["RmsNorm"]
    assert outcome.after.opset_import[0].version == max(opset, 17)
    outcome.same({"S": 3})


def roi_model(in_body: bool) -> onnx.ModelProto:
    """RoiAlign means something else from opset 16 on, unless an attribute says not."""
    align = "{} = RoiAlign<output_height=2, output_width=2, spatial_scale=0.5>(image, rois, which)"
    if in_body:
        text = f"""
            y = If (flag) <
                then_branch = yes () => (float[A, B, C, D] a) {{ {align.format("a")} }},
                else_branch = no () => (float[A, B, C, D] b) {{ {align.format("b")} }}
            >"""
    else:
        text = align.format("y")
    inputs = "float[1, 2, 8, 8] image, float[3, 4] rois, bool flag"
    return model(text, inputs, opset=13, weights={"which": np.zeros(3, np.int64)})


@pytest.mark.parametrize("in_body", [False, True])
def test_an_operator_that_changed_keeps_its_meaning(in_body):
    outcome = fuse_model(roi_model(in_body))
    assert outcome.after.opset_import[0].version == 17
    text = onnx.printer.to_text(outcome.after)
    mode = 'coordinate_transformation_mode: string = "output_half_pixel"'
    assert text.count("RoiAlign <") == text.count(mode) > 0
    corners = np.array([[1, 1, 6, 6], [0, 2, 5, 7], [3, 0, 7, 4]], np.float32)
    outcome.same({}, rois=corners)


BATCH_NORM = norm(y="h") + "{} = BatchNormalization(h, gamma, gamma, gamma, spread)"
STATISTICS = {"gamma": (4,), "spread": np.full(4, 2, np.float32)}


def test_batch_normalisation_beside_a_fusion():
    made = model(BATCH_NORM.format("y"), X, weights=STATISTICS, opset=13)
    outcome = fuse_model(made)
    assert outcome.ops == ["RmsNorm", "BatchNormalization"]
    outcome.same({"S": 3})


def test_batch_normalisation_for_training_keeps_its_opset():
    made = model(BATCH_NORM.format("y, m, v, sm, sv"), X, weights=STATISTICS, opset=13)
    outcome = fuse_model(made)
    assert outcome.counts == {}
    assert outcome.after.opset_import[0].version == 13
    onnx.checker.check_model(outcome.after)


IF = """
    h = Neg(x)
    {inner}
    y = If (flag) <
        then_branch = yes () => (T[A, B] a) {{ a = Exp({captured}) }},
        else_branch = no () => (T[C, D] b) {{ b = Identity({captured}) }}
    >
"""


@pytest.mark.parametrize(
    "inner",
    [
        "c = Identity(h)",
        "c = Mul(h, 1.0)",
        "d = Exp(x)\nc = Exp(x)\nz = Neg(d)",
        "d = Transpose<perm=[1, 0]>(h)\nc = Transpose<perm=[1, 0]>(d)",
        "d = Add(2.0, 1.0)\ne = Add(d, 4.0)\nc = Mul(h, e)",
    ],
)
def test_a_branch_keeps_what_it_captures(inner):
    outputs = "T y, T z" if "z =" in inner else "T y"
    text = IF.format(inner=inner, captured="c")
    outcome = fuse_model(model(text, f"{X}, bool flag", outputs))
    for flag in (True, False):
        outcome.same({"S": 3}, flag=np.array(flag))


@pytest.mark.parametrize("inner", ["square", "root", "unit", "y1"])
def test_what_a_branch_captures_is_not_fused_away(inner):
    text = norm(y="y1") + IF.format(inner="", captured=inner).replace("y = If", "z = If")
    made = model(text, f"{X}, bool flag", "T y1, T z", weights={"gamma": (4,)}, opset=17)
    outcome = fuse_model(made)
    # A norm without weights gives the unit that the branch reads.
    assert outcome.counts == ({"RmsNorm": 1} if inner in ("unit", "y1") else {})
    for flag in (True, False):
        outcome.same({"S": 3}, flag=np.array(flag))


def test_a_loop_that_captures():
    text = (
        norm(y="h")
        + """
        count = Constant<value_int=3>()
        go = Constant<value = bool {1}>()
        y = Loop (count, go, x) <
            body = step (int64 i, bool c, T[A, B] v) => (bool d, T[C, D] w) {
                d = Identity(c)
                w = Add(v, h)
            }
        >
    """
    )
    outcome = normalised(text, outputs="T[S, 4] y")
    assert outcome.counts == {"RmsNorm": 1}
    outcome.same({"S": 3})


def test_a_name_inside_a_branch_is_not_given_again():
    """New tensors are named after old ones; a branch may have that name already."""
    text = """
        h = Neg(x)
        c = Add(2.0, 3.0)
        t = Mul(h, c)
        y = If (flag) <
            then_branch = yes () => (T[A, B] a) { a = Add(t, one) },
            else_branch = no () => (T[C, D] b) { b = Sub(t, one) }
        >
    """
    made = model(text, f"{X}, bool flag", weights={"one": 1.0})
    (branch,) = [n for n in made.graph.node if n.op_type == "If"]
    for attribute in branch.attribute:
        attribute.g.node.insert(0, helper.make_node("Exp", ["t"], ["c/constant"]))
        attribute.g.node[1].input[1] = "c/constant"
    outcome = fuse_model(made)
    outcome.same({"S": 3}, flag=np.array(True))


PORTS = {
    "an input": ("z = Neg(x)", "T[S, 4] x", "T x_again, T z"),
    "two names": ("h = Neg(x)\ny = Identity(h)\nz = Identity(h)", X, "T y, T z"),
    "inner too": ("h = Neg(x)\ny = Identity(h)\nz = Exp(h)", X, "T y, T h, T z"),
    "an initializer": ("y = Identity(gamma)\nz = Neg(x)", X, "T y, T z"),
    "a constant": ("y = Constant<value_float=2.0>()\nz = Neg(x)", X, "float y, T z"),
    "a folded one": ("a = Add(gamma, 1.0)\ny = Mul(a, 2.0)\nz = Neg(x)", X, "T y, T z"),
    "equal twins": ("y = Neg(x)\nz = Neg(x)", X, "T y, T z"),
    "a view of an input": ("y = Mul(x, 1.0)\nz = Identity(x)", X, "T y, T z"),
    "unused input": ("y = Neg(x)", f"T[P, 3] unused, {X}, int64[2] also", "T y"),
    "a fused result": (norm(), X, "T y"),
    "a shape": ("y = Shape(x)\nz = Neg(x)", X, "int64 y, T z"),
}


def signature(values) -> list[tuple[object, ...]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [str(d.dim_param or d.dim_value) for d in v.type.tensor_type.shape.dim],
        )
        for v in values
    ]


@pytest.mark.parametrize("case", PORTS)
def test_inputs_and_outputs_stay_as_they_are(case):
    text, inputs, outputs = PORTS[case]
    if case == "an input":
        text += "\nx_again = Identity(x)"
    outcome = normalised(text, inputs, outputs)
    assert signature(outcome.after.graph.input) == signature(outcome.before.graph.input)
    assert signature(outcome.after.graph.output) == signature(outcome.before.graph.output)
    outcome.same({"S": 3, "P": 2}, {"S": 1, "P": 1})


@pytest.mark.parametrize("port", ["x", "gamma"])
def test_an_output_that_no_node_writes(port):
    """The graph hands out its input or an initializer under its own name."""
    made = model("y = Mul(x, gamma)", X, weights={"gamma": (4,)})
    shape = ["S", 4] if port == "x" else [4]
    made.graph.output.append(helper.make_tensor_value_info(port, TensorProto.FLOAT, shape))
    outcome = fuse_model(made)
    assert signature(outcome.after.graph.output) == signature(made.graph.output)
    feeds = draw(made, {"S": 3}, 0)
    for want, have in zip(
        *(session(m).run(None, feeds) for m in (made, outcome.after)), strict=True
    ):
        compare(port, want, have)


def test_a_model_with_nothing_to_fuse_stays_equal():
    outcome = normalised("a = Exp(x)\nb = Sin(a)\ny = Sub(a, b)")
    assert outcome.ops == ["Exp", "Sin", "Sub"]
    assert [list(n.input) for n in outcome.after.graph.node] == [["x"], ["a"], ["a", "b"]]
    assert outcome.counts == {}
    assert not outcome.after.functions
    outcome.same({"S": 3})


@pytest.mark.parametrize("element", ["INT4", "UINT4", "FLOAT4E2M1"])
def test_four_bits_stay_packed(element):
    kind = getattr(onnx.TensorProto, element)
    made = model("w = DequantizeLinear(q, 0.5)\ny = Add(x, w)", "T[3] x, T[1] q", opset=23)
    del made.graph.input[1]
    made.graph.initializer.append(onnx.helper.make_tensor("q", kind, [3], [1, 2, 3]))
    outcome = fuse_model(made)
    (kept,) = [t for t in outcome.after.graph.initializer if t.name == "q"]
    assert kept.data_type == kind
    assert onnx.numpy_helper.to_array(kept).astype(float).tolist() == [1, 2, 3]


def test_bfloat16_passes():
    text = norm().replace("square = Mul(x, x)", "w = Cast<to=1>(x)\nsquare = Mul(w, w)")
    text = text.replace("1.0e-5", "eps").replace("Div(x, root)", "Div(w, root)")
    text = text.replace("y = Mul(unit", "n = Cast<to=16>(unit)\ny = Mul(n")
    made = model(
        text,
        X,
        dtype="bfloat16",
        opset=17,
        weights={"gamma": (4,), "eps": np.float64(1e-5).astype(np.float32)},
    )
    (eps,) = [t for t in made.graph.initializer if t.name == "eps"]
    eps.CopyFrom(onnx.numpy_helper.from_array(np.array(1e-5, np.float32), "eps"))
    outcome = fuse_model(made)
    assert outcome.ops == ["RmsNorm"]
    onnx.checker.check_model(outcome.after, full_check=True)


def test_a_dynamic_rank_is_left_alone():
    made = model(norm(), "T[S, 4] x", weights={"gamma": (4,)}, opset=17)
    made.graph.input[0].type.tensor_type.ClearField("shape")
    made.graph.output[0].type.tensor_type.ClearField("shape")
    outcome = fuse_model(made)
    outcome.refused("RmsNorm", "y", "the rank of x is not known")


def test_an_equal_node_behind_one_that_was_renamed():
    """The first of two equal nodes takes the name of a graph output before the second is seen."""
    text = """
        first = Add(x, r)
        y = Identity(first)
        second = Add(x, r)
        z = Neg(second)
    """
    outcome = fuse_model(model(text, "T[B, 4] x, T[B, 4] r", "T y, T z"))
    assert outcome.ops == ["Add", "Neg"]
    outcome.same({"B": 2})


def test_readers_do_not_go_through_what_stays_for_its_name():
    """Two outputs hold one tensor, and a third node reads it through one of them."""
    text = "h = Add(x, r)\ny = Identity(h)\nz = Identity(h)\nw = Neg(z)"
    outcome = fuse_model(model(text, "T[B, 4] x, T[B, 4] r", "T y, T z, T w"))
    (neg,) = [node for node in outcome.after.graph.node if node.op_type == "Neg"]
    assert list(neg.input) == ["y"]
    outcome.same({"B": 2})


def test_an_axis_that_is_dropped_and_put_back():
    text = "flat = ReduceMean<keepdims=0>(x, [1])\ny = Unsqueeze(flat, [-2])"
    outcome = fuse_model(model(text, "T[B, S, 4] x"))
    assert outcome.ops == ["ReduceMean"]
    outcome.same({"B": 2, "S": 3})


def test_an_axis_that_is_put_back_elsewhere():
    text = "flat = ReduceMean<keepdims=0>(x, [1])\ny = Unsqueeze(flat, [0])"
    outcome = fuse_model(model(text, "T[B, S, 4] x"))
    assert outcome.ops == ["ReduceMean", "Unsqueeze"]
    outcome.same({"B": 2, "S": 3})
