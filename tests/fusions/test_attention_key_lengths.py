"""Masks made of numbers of keys become FlashAttention's lengths, where a plugin library has it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.proving import prove_widening
from tests.small import fuse_model, model

QKV = "T[B, 4, Q, 6] q, T[B, 4, K, 6] k, T[B, 4, K, 6] v, int64[B] n"
NUMBERS = {"zero": np.array(0), "one": np.array(1), "three": np.array(3)}
KEYS = """
    size = Shape<start=2, end=3>(k)
    count = Squeeze(size)
    keys = Range(zero, count, one)
    ends = Unsqueeze(n, [1])
"""
QUERIES = """
    size_q = Shape<start=2, end=3>(q)
    count_q = Squeeze(size_q)
    rows = Range(zero, count_q, one)
    rows_up = Unsqueeze(rows, [1])
    starts = Unsqueeze(n, [1, 2])
    places = Add(starts, rows_up)
"""
CORE = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    product = MatMul(q, kt)
    scores = Mul(product, 0.4)
    {}
    p = Softmax<axis=-1>(logits)
    y = MatMul(p, v)
"""
BEFORE = "short = Less(keys, ends)\nkeep = Unsqueeze(short, [1, 2])\n"
BEHIND = "far = LessOrEqual(keys, places)\nkeep = Unsqueeze(far, [1])\n"
NEAR = """
    first = Sub(places, three)
    near = Greater(keys, first)
    both = And(far, near)
    keep = Unsqueeze(both, [1])
"""
CHOSEN = "logits = Where(keep, scores, -inf)"
# What hides keys, and the node's inputs, causal, and window.
SPELT = {
    "less": (BEFORE + CHOSEN, (4, 0, 0)),
    "added": (BEFORE + "mask = Where(keep, 0.0, -inf)\nlogits = Add(scores, mask)", (4, 0, 0)),
    "at least": (
        "long = GreaterOrEqual(keys, ends)\ndrop = Unsqueeze(long, [1, 2])\n"
        "logits = Where(drop, -inf, scores)",
        (4, 0, 0),
    ),
    "the other way round": (
        "short = Greater(ends, keys)\nlong = Not(short)\ndrop = Unsqueeze(long, [1, 2])\n"
        "logits = Where(drop, -inf, scores)",
        (4, 0, 0),
    ),
    "up to": (
        "short = LessOrEqual(keys, ends)\nkeep = Unsqueeze(short, [1, 2])\n" + CHOSEN,
        (4, 0, 0),
    ),
    "beside another": (
        BEFORE + "mask = Where(keep, 0.0, -inf)\nall = Add(mask, more)\nlogits = Add(scores, all)",
        (5, 0, 0),
    ),
    "behind a cache": (QUERIES + BEHIND + CHOSEN, (4, 1, 0)),
    "a window": (QUERIES + BEHIND.split("\n")[0] + NEAR + CHOSEN, (4, 1, 3)),
}
MORE = ", T[B, 1, Q, K] more"


def built(logits, qkv=QKV, weights=None, **options):
    more = MORE if "more" in logits else ""
    used = {name: value for name, value in NUMBERS.items() if name in KEYS + logits}
    return model(KEYS + CORE.format(logits), qkv + more, weights=used | (weights or {}), **options)


def widened(logits, **options):
    outcome = fuse_model(built(logits, **options), library={"FlashAttention"})
    assert outcome.counts == {"FlashAttention": 1}
    return outcome


def seen(outcome):
    """The node's inputs, causal, and window; it counts keys."""
    node = outcome.node("FlashAttention")
    counted, causal, window = (
        outcome.attribute("FlashAttention", name) for name in ("lengths", "causal", "window")
    )
    assert counted == 1
    return len(node.input), causal, window


def keeps_its_mask(outcome):
    names = {attribute.name for attribute in outcome.node("FlashAttention").attribute}
    return "lengths" not in names and len(outcome.node("FlashAttention").input) == 4


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("case", SPELT)
def test_lengths(case, dtype):
    logits, want = SPELT[case]
    outcome = widened(logits, dtype=dtype)
    assert seen(outcome) == want
    assert {"Range", "Where", "Less"}.isdisjoint(outcome.ops)
    for counted in ([0, 9, 1], [5, -2, 30], [2**31, -(2**40), 2]):
        outcome.same({"B": 3, "Q": 5, "K": 9}, {"B": 3, "Q": 1, "K": 4}, n=np.array(counted))


@pytest.mark.parametrize("case", SPELT)
def test_the_proof_holds_and_finds_a_wrong_one(case, monkeypatch):
    made = built(SPELT[case][0])
    assert not prove_widening(monkeypatch, "FlashAttention", made).failed
    wrong = ("there = Less(columns", "there = LessOrEqual(columns")
    if SPELT[case][1][1]:  # which ends before the lengths do
        wrong = ("visible = LessOrEqual", "visible = Less")
    assert prove_widening(monkeypatch, "FlashAttention", made, *wrong).failed


def test_one_number_for_all():
    qkv = QKV.replace("int64[B]", "int32[1]")
    logits = "long = Cast<to=7>(n)\nshort = Less(keys, long)\nlogits = Where(short, scores, -inf)"
    made = model(
        KEYS.replace("ends = Unsqueeze(n, [1])", "") + CORE.format(logits),
        qkv,
        weights={name: NUMBERS[name] for name in ("zero", "one")},
    )
    outcome = fuse_model(made, library={"FlashAttention"})
    assert seen(outcome) == (4, 0, 0)
    outcome.same({"B": 3, "Q": 5, "K": 9}, n=np.array([4], np.int32))


FINITE = {
    "the lowest": BEFORE + "logits = Where(keep, scores, -3.4028235e38)",
    "ten thousand": BEFORE + "mask = Where(keep, 0.0, -10000.0)\nlogits = Add(scores, mask)",
}


@pytest.mark.parametrize("case", FINITE)
def test_a_finite_fill_stays_a_mask(case):
    """Of a batch without keys all of them weigh alike, or as if there were no mask."""
    outcome = widened(FINITE[case])
    assert keeps_its_mask(outcome)
    outcome.same({"B": 2, "Q": 5, "K": 9}, n=np.array([0, 4]))


@pytest.mark.parametrize(
    ("size", "shape", "axes"),
    [("K", "n", ""), ("Q", "up", "up = Unsqueeze(n, [1])")],
)
def test_numbers_of_queries_or_keys_stay_a_mask(size, shape, axes):
    qkv = QKV.replace("int64[B]", f"int64[{size}]")
    logits = f"{axes}\nkeep = Less(keys, {shape})\nlogits = Where(keep, scores, -inf)"
    outcome = widened(logits, qkv=qkv)
    assert keeps_its_mask(outcome)
    outcome.same({"B": 2, "Q": 5, "K": 9}, n=np.arange(5 if size == "Q" else 9) % 4 + 1)


def test_limits_of_two_numbers_stay_a_mask():
    logits = QUERIES + BEHIND.split("\n")[0] + NEAR + CHOSEN
    logits = logits.replace("Sub(places, three)", "Sub(others, three)")
    logits = "m2 = Neg(n)\nup = Unsqueeze(m2, [1, 2])\n" + logits.replace(
        "first =", "others = Add(up, rows_up)\nfirst ="
    )
    outcome = widened(logits)
    assert keeps_its_mask(outcome)
    outcome.same({"B": 2, "Q": 5, "K": 9}, n=np.array([3, 1]))


# Comparisons of keys with numbers that are not added to themselves.
COMPARED = {
    "at most": "keep = LessOrEqual(own, ends)",
    "at least": "keep = GreaterOrEqual(ends, own)",
    "less": "keep = Less(own, ends)",
    "not more": "over = Greater(own, ends)\nkeep = Not(over)",
    "fewer": "more = Add(own, three)\nkeep = Less(more, ends)",
    "further": "fewer = Sub(own, three)\nkeep = LessOrEqual(fewer, ends)",
    "behind": "rows_own = Cast<to=KIND>(rows_up)\nahead = Sub(own, rows_own)\n"
    "keep = LessOrEqual(ahead, ends)",
    "behind and fewer": "rows_own = Cast<to=KIND>(rows_up)\nahead = Sub(own, rows_own)\n"
    "more = Add(ahead, three)\nkeep = LessOrEqual(more, ends)",
}


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("case", COMPARED)
def test_numbers_at_the_ends_of_their_type(case, kind):
    """Some say "all keys" with the highest number; with one more it would be the lowest."""
    spelt = "ends = Unsqueeze(n, [1, 2, 3])\nown = Cast<to=KIND>(keys)\n" + COMPARED[case]
    spelt = (QUERIES.split("starts")[0] if "rows" in spelt else "") + spelt
    spelt = spelt.replace("KIND", {"int64": "7", "int32": "6"}[kind]) + "\n" + CHOSEN
    weights = {"three": np.array(3, kind)} if "three" in spelt else {}
    text = KEYS.replace("ends = Unsqueeze(n, [1])", "") + CORE.format(spelt)
    numbers = {name: NUMBERS[name] for name in ("zero", "one")}
    made = model(text, QKV.replace("int64[B]", f"{kind}[B]"), weights=numbers | weights)
    outcome = fuse_model(made, library={"FlashAttention"})
    assert seen(outcome) == (4, int(case.startswith("behind")), 0)
    ends = np.iinfo(kind)
    for counted in ([ends.max, 4], [ends.min, ends.max - 1], [ends.min + 2, -1], [5, 0]):
        outcome.same({"B": 2, "Q": 5, "K": 9}, n=np.array(counted, kind))


def test_numbers_that_a_cast_changes():
    """2^63 - 1 is -1 as int32, and 2^32 + 4 is 4."""
    spelt = """
        own = Cast<to=6>(keys)
        fewer = Cast<to=6>(ends)
        short = Less(own, fewer)
        keep = Unsqueeze(short, [1, 2])
    """
    outcome = widened(spelt + CHOSEN)
    assert seen(outcome) == (4, 0, 0)
    outcome.same({"B": 3, "Q": 5, "K": 9}, n=np.array([2**63 - 1, 2**32 + 4, 3]))


def test_layers_share_their_lengths():
    """The nodes that make them stand once, whatever number of attentions reads them."""
    keep = SPELT["up to"][0].replace(CHOSEN, "")
    text = KEYS + keep + CORE.format(CHOSEN).replace("y =", "between =")
    again = CORE.format(CHOSEN)
    for name in ("kt", "product", "scores", "logits", "p"):
        again = again.replace(f"{name} =", f"{name}2 =").replace(f"({name},", f"({name}2,")
    again = (
        again.replace("kt)", "kt2)").replace("scores,", "scores2,").replace("logits)", "logits2)")
    )
    again = again.replace("MatMul(q,", "MatMul(between,")
    used = {name: NUMBERS[name] for name in ("zero", "one")}
    outcome = fuse_model(model(text + again, QKV, weights=used), library={"FlashAttention"})
    assert outcome.ops.count("FlashAttention") == 2
    assert outcome.ops.count("Add") == 1
    outcome.same({"B": 2, "Q": 5, "K": 9}, n=np.array([3, 7]))


def test_without_a_library_the_mask_stays():
    assert keeps_its_mask(fuse_model(built(SPELT["less"][0])))
