"""Small graphs cut for several ranks: all ranks in step compute what the graph does."""

from __future__ import annotations

import numpy as np
import pytest

from opfuse.errors import InputError
from tests.ranks import Cut, cut
from tests.sharding.blocks import attention, block
from tests.small import model

ROWS = ({"B": 2, "S": 5}, {"B": 1, "S": 1})
MLP = "h = MatMul(x, w)\na = Relu(h)\ny = MatMul(a, v)\n"
MLP_WEIGHTS = {"w": (6, 8), "v": (8, 6)}


def test_a_layer_by_columns_and_one_by_rows(tmp_path):
    made = cut(model(MLP, "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 4)), ("row", (4, 6))]
    assert made.plan.collectives == {"AllReduce": 1, "AllGather": 0, "AllReduceAddNorm": 0}
    parts = made.weights("w")
    whole = next(t for t in made.before.graph.initializer if t.name == "w")
    assert np.array_equal(np.concatenate(parts, 1).ravel(), np.frombuffer(whole.raw_data, "f4"))


def test_a_bias_behind_the_sum_is_added_once(tmp_path):
    text = MLP.replace("a = Relu(h)", "hb = Add(h, b)\na = Relu(hb)").replace("y =", "part =")
    text += "y = Add(part, c)\n"
    weights = {**MLP_WEIGHTS, "b": (8,), "c": np.full(6, 100, np.float32)}
    made = cut(model(text, "T[B, S, 6] x", weights=weights), 4, tmp_path)
    made.same(*ROWS)
    assert made.ops()[-1] == "Add"
    assert [part.shape for part in made.weights("b")] == [(2,)] * 4


@pytest.mark.parametrize("ranks", [2, 4])
def test_gate_and_up_are_cut_each_where_they_are_one_weight(tmp_path, ranks):
    text = """
        both = MatMul(x, w)
        gate, up = Split<axis=-1>(both, [8, 8])
        s = Sigmoid(gate)
        a = Mul(gate, s)
        h = Mul(a, up)
        y = MatMul(h, v)
    """
    weights = {"w": np.arange(96, dtype=np.float32).reshape(6, 16) / 96, "v": (8, 6)}
    made = cut(model(text, "T[B, S, 6] x", weights=weights), ranks, tmp_path)
    made.same(*ROWS)
    assert "GatedAct" in made.ops()
    own = np.array(weights["w"])[:, [*range(8 // ranks), *range(8, 8 + 8 // ranks)]]
    assert np.array_equal(made.weights("w")[0], own)


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("heads", "few", "ranks", "own"),
    [(4, 4, 2, (2, 2)), (4, 2, 2, (2, 1)), (4, 2, 4, (1, 1)), (8, 2, 4, (2, 1)), (6, 1, 3, (2, 1))],
)
def test_attention_by_heads(tmp_path, heads, few, ranks, own, dtype):
    made = cut(model(**block(heads, few), dtype=dtype), ranks, tmp_path)
    made.same(*ROWS)
    (attention,) = made.plan.attentions
    assert (attention.heads, attention.kv_heads) == own
    assert attention.replicated_kv == (few < ranks)
    assert [how for how, _ in made.products()] == ["column", "row"]
    assert made.weights("w")[0].shape[1] == (own[0] + 2 * own[1]) * 4


def test_heads_across_two_groups_have_a_key_each(tmp_path):
    """12 query heads of 6 groups on 4 ranks: the first has two of one group and one of the next."""
    made = cut(model(**block(12, 6, 2)), 4, tmp_path)
    made.same(*ROWS)
    (attention,) = made.plan.attentions
    assert (attention.heads, attention.kv_heads) == (3, 3)


def test_more_ranks_than_heads_leave_attention_whole(tmp_path):
    case = block(2, 2)
    text = str(case["text"]).replace("y = Add(part, bo)\n", "z = Add(part, bo)\n")
    text += "h = MatMul(z, up)\na = Relu(h)\ny = MatMul(a, down)\n"
    weights = {**case["weights"], "up": (6, 8), "down": (8, 6)}
    made = cut(model(text, "T[B, S, 6] x", weights=weights), 4, tmp_path)
    made.same(*ROWS)
    assert made.plan.attentions == ()
    assert made.products() == [("column", (6, 2)), ("row", (2, 6))]
    assert any("would cut through 2 x 4" in reason for reason in made.reasons())


@pytest.mark.parametrize(("axis", "heads"), [(3, "[0, 0, 4, 3, 4]"), (2, "[0, 0, 3, 4, 4]")])
def test_every_order_of_a_packed_weight(tmp_path, axis, heads):
    """Queries, keys, and values of one head side by side, or all heads of each."""
    split = f"r = Reshape(qkv, {heads})\nqs, ks, vs = Split<axis={axis}>(r, [1, 1, 1])\n"
    split += "".join(f"{x}4 = Squeeze({x}s, [{axis}])\n" for x in "qkv")
    made = cut(model(**block(4, 4, split=split)), 2, tmp_path)
    made.same(*ROWS)
    assert [how for how, _ in made.products()] == ["column", "row"]
    columns = np.arange(48).reshape((4, 3, 4) if axis == 3 else (3, 4, 4))
    own = columns[:2] if axis == 3 else columns[:, :2]
    whole = next(t for t in made.before.graph.initializer if t.name == "w")
    values = np.frombuffer(whole.raw_data, "f4").reshape(6, 48)
    assert np.array_equal(made.weights("w")[0], values[:, own.ravel()])


def test_queries_and_keys_that_are_normed_together_leave_the_values_split(tmp_path):
    """A norm over all heads needs all of q and k; v, of the same weight, is split none the less."""
    case = block(4, 4)
    text = str(case["text"]).replace(
        "q4 = Reshape(qp", "qn = Softmax<axis=-1>(qp)\nq4 = Reshape(qn"
    )
    text = text.replace("k4 = Reshape(kp", "kn = Softmax<axis=-1>(kp)\nk4 = Reshape(kn")
    made = cut(model(text, "T[B, S, 6] x", weights=case["weights"]), 2, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 16 + 16 + 8)), ("row", (8, 6))]


@pytest.mark.parametrize("mask", ["T[B, 1, S, S]", "T[1, 4, S, S]", "T[B, 4, S, S]", "T[S, S]"])
def test_a_mask_for_all_heads_or_one_for_each(tmp_path, mask):
    case = block(4, 4, mask="m")
    case["inputs"] = f"{case['inputs']}, {mask} m"
    made = cut(model(**case), 2, tmp_path)
    made.same(*ROWS)
    assert len(made.plan.attentions) == 1
    assert made.plan.inputs == ()


def test_a_cache_is_given_and_returned_in_parts(tmp_path):
    case = block(4, 2)
    text = str(case["text"]).replace("k = Transpose<perm=[0, 2, 1, 3]>(k4)", "k1 = K(k4)")
    text = text.replace("k1 = K(k4)", "k1 = Transpose<perm=[0, 2, 1, 3]>(k4)")
    text = text.replace("k5 =", "k = Concat<axis=2>(past, k1)\nk5 =")
    text = text.replace("v5 =", "v0 = Slice(v, [0], [0], [2])\nvv = Concat<axis=2>(pastv, v)\nv5 =")
    text = text.replace("Unsqueeze(v, [2])", "Unsqueeze(vv, [2])")
    inputs = f"{case['inputs']}, T[B, 2, P, 4] past, T[B, 2, P, 4] pastv"
    outputs = "T y, T k, T vv"
    before = model(text, inputs, outputs, case["weights"])
    made = cut(before, 4, tmp_path)
    made.same({"B": 2, "S": 1, "P": 3}, {"B": 1, "S": 2, "P": 5})
    heads = ((0,), (0,), (1,), (1,))
    assert {(p.name, p.axis, p.ranks) for p in made.plan.inputs} == {
        ("past", 1, heads),
        ("pastv", 1, heads),
    }
    assert {port.name for port in made.plan.outputs} == {"k", "vv"}
    given = {i.name: i.type.tensor_type.shape.dim[1].dim_value for i in made.ranks[0].graph.input}
    assert given["past"] == given["pastv"] == 1


@pytest.mark.parametrize("mask", ["", "T[B, 1, 1, P] m", "T[P] m", "T[B, 1, 2, P] m"])
def test_query_heads_as_rows_of_their_key_head(tmp_path, mask):
    """One query, 4 heads, 2 key/value heads: torch lays the heads as [B, 2, 2, size]."""
    text = attention(2, 2, 4, mask="m" if mask else "", split="")
    _, _, text = text.partition("kt = ")
    text = (
        "q0 = MatMul(x, w)\nq4 = Reshape(q0, [0, 1, 4, 4])\n"
        "q1 = Transpose<perm=[0, 2, 1, 3]>(q4)\nq = Reshape(q1, [0, 2, 2, 4])\n"
        "kflat = Identity(k)\nvflat = Identity(v)\nkt = " + text
    )
    text = text.replace("o4 =", "o1 = Reshape(o, [0, 4, 1, 4])\no4 =").replace("(o)", "(o1)")
    text = text.replace("[0, 0, 8]", "[0, 1, 16]") + "y = MatMul(flat, wo)\n"
    inputs = ", ".join(filter(None, ["T[B, 1, 6] x", "T[B, 2, P, 4] k", "T[B, 2, P, 4] v", mask]))
    before = model(text, inputs, weights={"w": (6, 16), "wo": (16, 6)})
    if "2, P" in mask:  # another row for each head of a group: they stay rows
        with pytest.raises(InputError, match="nothing in it can be split among 4 ranks"):
            cut(before, 4, tmp_path)
        return
    made = cut(before, 4, tmp_path)
    made.same({"B": 2, "P": 5}, {"B": 1, "P": 1})
    (found,) = made.plan.attentions
    assert (found.heads, found.kv_heads) == (1, 1)


def test_sizes_that_are_computed_are_those_of_the_whole(tmp_path):
    """Head sizes by Shape and Div; the features of a split tensor, seen by somebody else."""
    text = """
        h = MatMul(x, w)
        a = Relu(h)
        sizes = Shape(a)
        last = Gather(sizes, [2])
        count = Cast<to=1>(last)
        rows = Slice(sizes, [0], [2], [0])
        wide = Concat<axis=0>(rows, [2], [4])
        four = Reshape(a, wide)
        turned = Tanh(four)
        back = Reshape(turned, sizes)
        p = MatMul(back, v)
        y = Mul(p, count)
    """
    made = cut(model(text, "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert [how for how, _ in made.products()] == ["column", "row"]


def test_what_is_also_returned_stays_whole(tmp_path):
    before = model(MLP, "T[B, S, 6] x", "T y, T a", MLP_WEIGHTS)
    with pytest.raises(InputError, match="also needed whole"):
        cut(before, 2, tmp_path)


def test_what_another_node_needs_whole_stays_whole(tmp_path):
    text = MLP.replace("y =", "part =") + "top = ReduceMax<axes=[-1]>(a)\ny = Add(part, top)\n"
    with pytest.raises(InputError, match="also needed whole"):
        cut(model(text, "T[B, S, 6] x", weights=MLP_WEIGHTS, opset=17), 2, tmp_path)


def test_a_part_is_taken_out_of_what_stays_whole(tmp_path):
    """A gate that every rank computes whole, beside features that are split."""
    text = """
        s = Softmax<axis=-1>(g)
        h = MatMul(x, w)
        a = Mul(h, s)
        y = MatMul(a, v)
    """
    made = cut(model(text, "T[B, S, 6] x, T[B, S, 8] g", weights=MLP_WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert "Slice" in made.ops()


TWO_ENDS = (
    "h = MatMul(x, w)\na = Relu(h)\nfirst, second = Split<axis=1>(a, [2, 3])\n"
    "y = MatMul(first, v)\n"
)


def test_tokens_that_go_to_products_of_their_own(tmp_path):
    """Text and image of one attention, as in Flux: neither is worth it without the other."""
    text = TWO_ENDS + "z = MatMul(second, u)\n"
    weights = {**MLP_WEIGHTS, "u": (8, 6)}
    before = model(text, "T[B, 5, 6] x", "T y, T z", weights=weights)
    made = cut(before, 2, tmp_path)
    made.same({"B": 2})
    assert made.products() == [("column", (6, 4)), ("row", (4, 6)), ("row", (4, 6))]


def test_tokens_of_which_some_are_needed_whole(tmp_path):
    text = TWO_ENDS + "z = Softmax<axis=-1>(second)\n"
    before = model(text, "T[B, 5, 6] x", "T y, T z", weights=MLP_WEIGHTS)
    with pytest.raises(InputError, match="its results are wanted in different parts"):
        cut(before, 2, tmp_path)


def test_a_projection_in_front_of_the_first_layer_costs_it_nothing(tmp_path):
    """By itself the layer's first product is worth a sum behind it; the residual needs it whole."""
    text = "f = MatMul(x, p)\ne = Add(f, q)\nh = MatMul(e, w)\na = Abs(h)\nm = MatMul(a, v)\n"
    weights = {**MLP_WEIGHTS, "p": (6, 6), "q": (6,)}
    made = cut(model(text + "y = Add(m, e)\n", "T[B, S, 6] x", weights=weights), 2, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 4)), ("row", (4, 6))]
    assert made.plan.collectives["AllReduce"] == 1
    (reason,) = made.reasons()
    assert "by columns: nothing behind it takes a part" in reason


def test_a_weight_that_two_layers_share_is_cut_once(tmp_path):
    text = MLP.replace("y =", "m =") + "h2 = MatMul(m, w)\na2 = Tanh(h2)\ny = MatMul(a2, v)\n"
    made = cut(model(text, "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert made.plan.collectives["AllReduce"] == 2
    assert len(made.weights("w")) == 2  # one for each rank


@pytest.mark.parametrize("biases", [(), ("c",), ("d",), ("c", "d")])
@pytest.mark.parametrize("order", ["m, n", "n, m"])
def test_layers_side_by_side_are_summed_at_once(tmp_path, biases, order):
    text = "h = MatMul(x, w)\na = Relu(h)\ng = MatMul(x, w2)\nb = Tanh(g)\n"
    for name, product, bias in (("m", "MatMul(a, v)", "c"), ("n", "MatMul(b, v2)", "d")):
        text += f"{name}0 = {product}\n"
        added = f"Add({name}0, {bias})" if bias in biases else f"Identity({name}0)"
        text += f"{name} = {added}\n"
    text += f"both = Add({order})\ny = Add(both, x)\n"
    weights = {**MLP_WEIGHTS, "w2": (6, 4), "v2": (4, 6), **dict.fromkeys(biases, (6,))}
    made = cut(model(text, "T[B, S, 6] x", weights=weights), 2, tmp_path)
    made.same(*ROWS)
    assert made.plan.collectives["AllReduce"] == 1


def test_three_layers_side_by_side(tmp_path):
    text = ""
    for number in range(3):
        text += f"h{number} = MatMul(x, w)\na{number} = Relu(h{number})\n"
        text += f"p{number} = MatMul(a{number}, v{number})\n"
    text += "s = Add(p0, p1)\nt = Add(s, p2)\ny = Add(t, x)\n"
    weights = {"w": (6, 8), **{f"v{number}": (8, 6) for number in range(3)}}
    made = cut(model(text, "T[B, S, 6] x", weights=weights), 2, tmp_path)
    made.same(*ROWS)
    assert made.plan.collectives["AllReduce"] == 1


def test_a_sum_that_is_read_twice_is_made_by_itself(tmp_path):
    """The second layer reads the first one's sum: they are one behind the other."""
    text = MLP.replace("y =", "m =") + "h2 = MatMul(m, w)\na2 = Relu(h2)\nn = MatMul(a2, v)\n"
    made = cut(model(text + "y = Add(m, n)\n", "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
    made.same(*ROWS)
    assert made.plan.collectives["AllReduce"] == 2


def test_words_are_shared_out_on_request(tmp_path):
    text = "x = Gather<axis=0>(table, ids)\n" + MLP.replace("y =", "m =") + "y = MatMul(m, head)\n"
    weights = {"table": (10, 6), **MLP_WEIGHTS, "head": (6, 10)}
    before = model(text, "int64[B, S] ids", weights=weights)
    ids = np.array([[0, 4, 5, 9, -1, -10, -6, 2]])
    plain = cut(before, 2, tmp_path)
    plain.same({"B": 1, "S": 8}, ids=ids)
    assert plain.plan.collectives == {"AllReduce": 1, "AllGather": 0, "AllReduceAddNorm": 0}
    made = cut(before, 2, tmp_path, vocab=True)
    made.same({"B": 1, "S": 8}, ids=ids)
    assert made.plan.collectives == {"AllReduce": 2, "AllGather": 1, "AllReduceAddNorm": 0}
    assert ("vocabulary", (5, 6)) in made.products()
    assert ("column", (6, 5)) in made.products()
    assert made.plan.outputs == ()


def test_words_that_do_not_divide_stay_whole(tmp_path):
    text = "x = Gather<axis=0>(table, ids)\n" + MLP.replace("y =", "m =") + "y = MatMul(m, head)\n"
    weights = {"table": (9, 6), **MLP_WEIGHTS, "head": (6, 9)}
    made = cut(model(text, "int64[B, S] ids", weights=weights), 2, tmp_path, vocab=True)
    made.same(*ROWS)
    assert made.reasons().count("9 do not divide among 2 ranks") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("h = MatMul(x, w)\na = Softmax<axis=-1>(h)\ny = MatMul(a, v)\n", "sums over the axis"),
        ("a = Relu(x)\ny = MatMul(a, w)\n", "no product in front"),
        ("h = MatMul(x, w)\na = CumSum(h, 2)\ny = MatMul(a, v)\n", "no rule says"),
    ],
)
def test_nothing_to_split_is_told_with_the_reasons(tmp_path, text, reason):
    before = model(text.replace(", 2)", ", [2])"), "T[B, S, 6] x", weights=MLP_WEIGHTS)
    with pytest.raises(InputError, match=reason):
        cut(before, 2, tmp_path)


def test_experts_that_are_looked_up_are_told(tmp_path):
    text = MLP.replace("y =", "m =") + "own = Gather<axis=0>(e, chosen)\ny = MatMul(m, own)\n"
    weights = {**MLP_WEIGHTS, "e": (4, 6, 6)}
    made = cut(model(text, "T[B, S, 6] x, int64[B] chosen", weights=weights), 2, tmp_path)
    chosen = np.array([3, 0])
    made.same({"B": 2, "S": 5}, chosen=chosen)
    assert made.products() == [("column", (6, 4)), ("row", (4, 6))]
    assert made.reasons() == ["its matrices are looked up, and what is found is multiplied with"]


def test_a_convolution_is_told(tmp_path):
    text = MLP.replace("x, w", "turned, w")
    text = "c = Conv(x, k)\nturned = Transpose<perm=[0, 2, 1]>(c)\n" + text
    weights = {**MLP_WEIGHTS, "k": (6, 3, 2)}
    made = cut(model(text, "T[B, 3, S] x", weights=weights), 2, tmp_path)
    made.same({"B": 2, "S": 5})
    assert made.reasons() == ["no rule splits what a Conv multiplies with"]


def test_a_quantised_weight_is_told(tmp_path):
    """And the first reason of each kind alone, where nothing can be split."""
    product = "wide_{0} = DequantizeLinear(q, scale)\nm_{0} = MatMul({1}, wide_{0})\n"
    numbers = np.arange(-18, 18, dtype=np.int8).reshape(6, 6)
    weights = {**MLP_WEIGHTS, "q": numbers, "scale": np.array(0.1, "f4")}
    text = product.format(1, "x") + MLP.replace("x, w", "m_1, w")
    made = cut(model(text, "T[B, S, 6] x", weights=weights), 2, tmp_path)
    made.same({"B": 2, "S": 5})
    reason = "no rule splits a weight that a DequantizeLinear makes"
    assert made.reasons() == [reason]
    alone = (
        "wide = DequantizeLinear(q, scale)\nt = Transpose<perm=[1, 0]>(wide)\ny = MatMul(x, t)\n"
    )
    with pytest.raises(InputError, match=reason) as refused:
        cut(model(alone, "T[B, S, 6] x", weights=weights), 2, tmp_path)
    assert refused.value.what.count("\n") == 1


def test_ranks_that_do_not_divide_are_told(tmp_path):
    with pytest.raises(InputError, match="8 do not divide among 3 ranks"):
        cut(model(MLP, "T[B, S, 6] x", weights=MLP_WEIGHTS), 3, tmp_path)


def test_a_wrong_weight_of_one_rank_is_seen(tmp_path):
    """What the proof is worth: it fails where one number of one rank is another."""
    made = cut(model(MLP, "T[B, S, 6] x", weights=MLP_WEIGHTS), 2, tmp_path)
    _spoil(made, "v")
    with pytest.raises(AssertionError):
        made.same(*ROWS)


def _spoil(made: Cut, weight: str) -> None:
    broken = made.ranks[1]
    (tensor,) = [t for t in broken.graph.initializer if t.name.startswith(weight)]
    values = np.frombuffer(tensor.raw_data, "f4").copy()
    values[0] += 1
    tensor.raw_data = values.tobytes()
    (made.folder / "rank1.onnx").write_bytes(broken.SerializeToString())
