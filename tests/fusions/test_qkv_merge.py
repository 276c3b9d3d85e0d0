"""Projections of q, k, and v from one tensor become one matrix product and a Split."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.numpy_helper import to_array

from tests.small import fuse_model, model

SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 7})


def project(name: str, heads: int, bias: str = "", x: str = "x", order="[0, 2, 1, 3]") -> str:
    """The statements of one projection of ``x`` into [batch, heads, positions, 6]."""
    layer = f"{name}0 = MatMul({x}, w{name})\n"
    if bias:
        layer += f"{name}1 = Add({bias})\n".replace("out", f"{name}0").replace("b", f"b{name}")
    source = f"{name}1" if bias else f"{name}0"
    return layer + (
        f"{name}4 = Reshape({source}, [0, -1, {heads}, 6])\n"
        f"{name} = Transpose<perm={order}>({name}4)\n"
    )


ATTENTION = """
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.25)
    weights = Softmax<axis=-1>(scores)
    y = MatMul(weights, v)
"""


def block(q="", k="", v="", *, sources="xxx", dtype="float", outputs="T y", more="", **weights):
    text = project("q", 4, q, sources[0])
    text += project("k", 4, k, sources[1]).replace("k =", "kt =").replace("2, 1, 3]", "2, 3, 1]")
    text += project("v", 4, v, sources[2])
    shapes = {f"w{name}": (5, 24) for name in "qkv"} | {f"b{name}": (24,) for name in "qkv"}
    used = {name: shape for name, shape in (shapes | weights).items() if name in text + more}
    inputs = "T[B, S, 5] x, T[B, S, 5] z, T[B, S, 5] w"
    return fuse_model(model(text + ATTENTION + more, inputs, outputs, used, dtype))


BIASED, FIRST = "out, b", "b, out"


@pytest.mark.parametrize(
    "biases", [("", "", ""), (BIASED,) * 3, (FIRST,) * 3, (BIASED, "", BIASED), ("", "", FIRST)]
)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_every_spelling_merges(biases, dtype):
    outcome = block(*biases, dtype=dtype)
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    assert outcome.ops.count("MatMul") == 1
    assert outcome.ops.count("Split") == 1
    outcome.same(*SIZES)


def test_the_merged_weight_is_the_three_side_by_side():
    outcome = block()
    before = {t.name: to_array(t) for t in outcome.before.graph.initializer}
    after = {t.name: to_array(t) for t in outcome.after.graph.initializer}
    want = np.concatenate([before["wq"], before["wk"], before["wv"]], axis=1)
    np.testing.assert_array_equal(after[outcome.node("MatMul").input[1]], want)
    assert after.keys().isdisjoint({"wq", "wk", "wv"})


def test_k_and_v_merge_where_q_has_another_source():
    outcome = block(sources="zxx")
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    assert outcome.ops.count("MatMul") == 2
    outcome.same(*SIZES)


def test_a_projection_that_leaves_the_graph_keeps_its_name():
    outcome = block(outputs="T y, T q0")
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)


def test_another_reader_of_a_projection_reads_the_split():
    outcome = block(more="r = Neg(k0)", outputs="T y, T r")
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)


def said(outcome) -> list[str]:
    return [miss.reason for miss in outcome.fused.misses if miss.kind == "qkv_merge"]


def test_two_of_three_that_share_their_source():
    outcome = block(sources="xzx")
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)


def test_two_streams_are_merged_each():
    """Joint attention over an image and a text, as in SD3, projects each by itself."""
    text = ""
    for name, order in (("q", "[0, 2, 1, 3]"), ("kt", "[0, 2, 3, 1]"), ("v", "[0, 2, 1, 3]")):
        parts = []
        for stream in "xz":
            text += project(f"{name}{stream}", 4, x=stream, order=order)
            parts.append(f"{name}{stream}")
        axis = 3 if name == "kt" else 2
        text += f"{name} = Concat<axis={axis}>({parts[0]}, {parts[1]})\n"
    weights = {f"w{name}{stream}": (5, 24) for name in ("q", "kt", "v") for stream in "xz"}
    inputs = "T[B, S, 5] x, T[B, L, 5] z"
    outcome = fuse_model(model(text + ATTENTION, inputs, weights=weights))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 2}
    outcome.same({"B": 2, "S": 5, "L": 3}, {"B": 1, "S": 1, "L": 1})


def test_three_sources_are_refused():
    outcome = block(sources="xzw")
    assert outcome.counts == {"FlashAttention": 1}
    assert said(outcome) == ["q, k, and v are not projected from one tensor"]
    outcome.same(*SIZES)


def test_a_weight_that_is_read_elsewhere_is_refused():
    outcome = block(more="r = MatMul(z, wk)", outputs="T y, T r")
    assert outcome.counts == {"FlashAttention": 1}
    assert said(outcome) == ["weight wk is also read by r (MatMul)"]
    outcome.same(*SIZES)


def test_one_weight_for_k_and_v():
    """Keys that are values too are one layer, which q joins."""
    text = project("q", 4) + project("k", 4).replace("k =", "kt =").replace("2, 1, 3", "2, 3, 1")
    text += project("v", 4).replace("wv", "wk")
    weights = {"wq": (5, 24), "wk": (5, 24)}
    outcome = fuse_model(model(text + ATTENTION, "T[B, S, 5] x", weights=weights))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)


def test_a_product_that_is_read_before_its_bias_is_refused():
    outcome = block(BIASED, BIASED, BIASED, more="r = Neg(v0)", outputs="T y, T r")
    assert outcome.counts == {"FlashAttention": 1}
    assert said(outcome) == ["v0 inside it is also read by r (Neg)"]
    outcome.same(*SIZES)


def test_a_packed_projection_is_no_near_miss():
    text = """
        qkv = MatMul(x, w)
        q0, k0, v0 = Split<axis=-1>(qkv, [24, 24, 24])
    """
    for name in "qkv":
        text += "\n".join(project(name, 4).splitlines()[1:]) + "\n"
    text = text.replace("k =", "kt =").replace("perm=[0, 2, 1, 3]>(k4", "perm=[0, 2, 3, 1]>(k4")
    outcome = fuse_model(model(text + ATTENTION, "T[B, S, 5] x", weights={"w": (5, 72)}))
    assert outcome.counts == {"FlashAttention": 1}
    assert said(outcome) == []
    outcome.same(*SIZES)


def test_grouped_heads_keep_their_widths():
    text = project("q", 4) + project("k0", 2) + project("v0", 2)
    for name in "kv":
        text += f"""
            {name}5 = Unsqueeze({name}0_, [2])
            {name}6 = Expand({name}5, [1, 1, 2, 1, 1])
            {name}7 = Shape({name}0_)
            {name}8 = Slice({name}7, [2], [3], [0])
            {name}9 = Concat<axis=0>([-1], [4], {name}8, [6])
            {name} = Reshape({name}6, {name}9)
        """
    for name in ("k0", "v0"):
        text = text.replace(f"{name} = Transpose", f"{name}_ = Transpose")
    text += "kt = Transpose<perm=[0, 1, 3, 2]>(k)\n" + ATTENTION
    weights = {"wq": (5, 24), "wk0": (5, 12), "wv0": (5, 12)}
    outcome = fuse_model(model(text, "T[B, S, 5] x", weights=weights))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    assert outcome.attribute("FlashAttention", "kv_num_heads") == 2
    outcome.same(*SIZES)


def test_projections_behind_tiled_heads():
    """[k0, k1, k0, k1], which attention does not take for copies in place."""
    text = project("q", 4) + project("k", 2).replace("k =", "few =") + project("v", 4)
    text += "one = Unsqueeze(few, [1])\nwide = Tile(one, [1, 2, 1, 1, 1])\n"
    text += "k = Reshape(wide, [0, 4, -1, 6])\nkt = Transpose<perm=[0, 1, 3, 2]>(k)\n"
    shapes = {"wq": (5, 24), "wk": (5, 12), "wv": (5, 24)}
    outcome = fuse_model(model(text + ATTENTION, "T[B, S, 5] x", weights=shapes))
    assert outcome.counts == {"FlashAttention": 1, "qkv_merge": 1}
    outcome.same(*SIZES)
