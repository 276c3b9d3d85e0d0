"""AllReduceAddNorm: a sum over the ranks, the bias, the residual, and the norm behind them."""

from __future__ import annotations

import onnx
import pytest

from opfuse.graph.collectives import Rank, rank_of, state
from opfuse.numerics.alone import stand_in
from opfuse.stages import fuse
from tests.small import RMS_NORM_WIDE, Outcome, fuse_model, model

REDUCE = 'total = opfuse.AllReduce<group_size=3, reduce_op="sum">(x)\n'

LAYER = "\ny = LayerNormalization<epsilon=1e-5>(sum, gamma, beta)\n"
SIZES = ({"B": 2, "S": 5}, {"B": 1, "S": 1})
WEIGHTS = {"gamma": (7,), "beta": (7,), "bias": (7,)}


def fused(text: str, *, outputs="y", dtype="float", x="B, S, 7", **weights) -> Outcome:
    """The outcome for one rank of three."""
    text = text.replace("<to=T>", f"<to={1 if dtype == 'float' else 10}>")
    names = {name: value for name, value in (WEIGHTS | weights).items() if name in text}
    inputs = f"T[{x}] x, T[B, S, 7] residual"
    typed = ", ".join(f"T[B, S, 7] {name}" for name in outputs.split(", "))
    before = model(REDUCE + text, inputs, typed, names, dtype, 17)
    state(before, Rank(1, 3, "plan"))
    return fuse_model(before)


def same(outcome: Outcome, *sizes) -> None:
    """Assert equal outputs where all ranks are alike."""
    onnx.checker.check_model(outcome.after, full_check=True)
    for made in (outcome.before, outcome.after):
        stand_in(made)
    outcome.same(*sizes)


@pytest.mark.parametrize("outputs", ["y", "y, sum"])
@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    "add",
    [
        "sum = Add(total, residual)",
        "sum = Add(residual, total)",
        "biased = Add(total, bias)\nsum = Add(biased, residual)",
        "biased = Add(bias, total)\nsum = Add(residual, biased)",
    ],
)
@pytest.mark.parametrize("norm", [RMS_NORM_WIDE, LAYER], ids=["rms", "layer"])
def test_every_spelling_fuses(norm, add, dtype, outputs):
    outcome = fused(add + norm, outputs=outputs, dtype=dtype)
    assert outcome.ops == ["AllReduceAddNorm"]
    assert outcome.counts == {"AllReduceAddNorm": 1}
    node = outcome.node("AllReduceAddNorm")
    kind = "layer" if norm is LAYER else "rms"
    assert outcome.attribute("AllReduceAddNorm", "norm") == kind.encode()
    assert outcome.attribute("AllReduceAddNorm", "group_size") == 3
    assert len(node.input) == 3 + (norm is LAYER) + ("bias" in add)
    same(outcome, *SIZES)


def test_a_view_behind_the_sum_is_made_before_it():
    """GPT-2's linear layers work on [batch * sequence, hidden]."""
    text = "like = Shape(residual)\nseen = Reshape(total, like)\nsum = Add(seen, residual)"
    outcome = fused(text + LAYER, x="N, 7")
    assert outcome.ops == ["Shape", "Reshape", "AllReduceAddNorm"]
    same(outcome, {"B": 2, "S": 3, "N": 6})


def test_nodes_with_and_without_a_bias_have_one_definition():
    text = (
        "sum = Add(total, residual)\n" + LAYER + REDUCE.replace("total", "total2") + "\n"
        "biased = Add(total2, bias)\nsum2 = Add(biased, sum)\n"
        "z = LayerNormalization<epsilon=1e-5>(sum2, gamma, beta)\n"
    )
    outcome = fused(text, outputs="y, z")
    nodes = [node for node in outcome.after.graph.node if node.op_type == "AllReduceAddNorm"]
    assert [len(node.input) for node in nodes] == [5, 5]
    same(outcome, *SIZES)


def test_the_rank_is_still_told():
    assert rank_of(fused("sum = Add(total, residual)" + RMS_NORM_WIDE).after) == Rank(1, 3, "plan")


@pytest.mark.parametrize(
    ("text", "outputs", "node", "reason"),
    [
        ("sum = Add(total, residual)" + RMS_NORM_WIDE, "y, total", "total", "leaves the graph"),
        (
            "sum = Add(total, residual)" + RMS_NORM_WIDE + "z = Neg(total)",
            "y, z",
            "z",
            "is also read by",
        ),
        (
            "biased = Add(total, 0.5)\nsum = Add(biased, residual)" + RMS_NORM_WIDE,
            "y",
            "biased",
            "has shape (), want (7)",
        ),
    ],
)
def test_near_misses_say_why(text, outputs, node, reason):
    outcome = fused(text, outputs=outputs)
    outcome.refused("AllReduceAddNorm", node, reason)
    assert "AllReduce" in outcome.ops
    same(outcome, {"B": 1, "S": 5})


def test_a_maximum_is_no_sum():
    text = REDUCE.replace("sum", "max").replace("total", "most")
    outcome = fused(text + "sum = Add(most, residual)" + RMS_NORM_WIDE)
    outcome.refused("AllReduceAddNorm", "most", "reduces by max, want sum")


def test_one_model_has_one_kind_of_norm():
    text = (
        "sum = Add(total, residual)\n" + LAYER + REDUCE.replace("total", "total2") + "\n"
        "sum2 = Add(total2, sum)\n" + RMS_NORM_WIDE.replace("sum", "sum2").replace("y =", "z =")
    )
    outcome = fused(text, outputs="y, z")
    assert outcome.counts["AllReduceAddNorm"] == 1
    said = [miss.reason for miss in outcome.fused.misses if miss.kind == "AllReduceAddNorm"]
    assert said == [f"AllReduceAddNorm stands for norm={_first(outcome)} in this model already"]
    same(outcome, *SIZES)


def _first(outcome: Outcome) -> str:
    return outcome.attribute("AllReduceAddNorm", "norm").decode()


def test_a_definition_that_adds_the_bias_twice_is_refuted(monkeypatch):
    """The proof runs both forms with the same stand-in for what the other ranks send."""
    from opfuse.fusions import all_reduce_add_norm as room
    from opfuse.numerics import extract
    from opfuse.numerics.prover import judge

    text = "biased = Add(total, bias)\nsum = Add(biased, residual)" + RMS_NORM_WIDE
    outcome = fused(text)
    (match,) = [m for m in outcome.fused.matches if m.kind == "AllReduceAddNorm"]
    right = judge(extract.build(match, outcome.after, None), 0)
    assert right.reason == ""
    monkeypatch.setitem(
        fuse.DEFINITIONS,
        "AllReduceAddNorm",
        room.Definition(
            "AllReduceAddNorm",
            room._inputs,
            ("y", "sum"),
            ("epsilon", "norm", "group_size"),
            lambda uses: room._body(uses).replace("Add(total, bias)", "Add(bias, bias)"),
        ),
    )
    (match,) = [m for m in fused(text).fused.matches if m.kind == "AllReduceAddNorm"]
    assert judge(extract.build(match, outcome.after, None), 0).reason
