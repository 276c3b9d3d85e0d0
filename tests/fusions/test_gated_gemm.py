"""GatedGemm: a linear layer and its gate in one node, and only where an engine's library has it."""

from __future__ import annotations

import pytest

from tests.fusions.spellings import GELU, GELU_TANH, SILU, every, spell
from tests.proving import prove_widening
from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 9})
KINDS = every(silu=SILU, gelu=GELU, gelu_tanh=GELU_TANH)
TWO = "g = MatMul(x, wg)\nu = MatMul(x, wu)\n"
BIASED = "g0 = MatMul(x, wg)\nu0 = MatMul(x, wu)\ng = Add(g0, bg)\nu = Add(u0, bu)\n"
PACKED = "p = MatMul(x, w)\ng, u = Split<axis=-1, num_outputs=2>(p)\n"
GATE = spell(SILU["mul"], "g", "a") + "y = Mul(a, u)\n"
SHAPES = {"wg": (5, 7), "wu": (5, 7), "bg": (7,), "bu": (7,), "w": (5, 14), "b": (14,)}


def widened(text, *, dtype="float16", outputs="T y", library=("GatedGemm",), **weights):
    shapes = {name: shape for name, shape in SHAPES.items() if f" {name})" in text}
    made = model(text, "T[2, S, 5] x", outputs, {**shapes, **weights}, dtype)
    return fuse_model(made, library=set(library))


@pytest.mark.parametrize("layers", [TWO, BIASED, PACKED], ids=["two", "biased", "packed"])
def test_every_spelling_is_one_node(layers):
    outcome = widened(layers + GATE)
    assert outcome.ops == ["GatedGemm"]
    assert len(outcome.node("GatedGemm").input) == (3 if layers is BIASED else 2)
    outcome.same(*SIZES)


@pytest.mark.parametrize(("kind", "text"), KINDS[::3])
def test_every_gate(kind, text):
    outcome = widened(TWO + spell(text, "g", "a") + "y = Mul(a, u)\n")
    assert outcome.ops == ["GatedGemm"]
    assert outcome.attribute("GatedGemm", "activation") == kind.encode()
    outcome.same(*SIZES)


def test_bfloat16():
    assert widened(TWO + GATE, dtype="bfloat16").ops == ["GatedGemm"]


def test_counts_stay_those_of_the_model():
    counts = {"GatedAct": 0, "gate_up_merge": 1, "GatedGemm": 1}
    outcome = widened(TWO + GATE)
    assert {kind: outcome.fused.counts[kind] for kind in counts} | {"GatedAct": 0} == counts


@pytest.mark.parametrize("library", [(), ("GatedAct",)])
def test_the_fused_graph_keeps_the_parts(library):
    outcome = widened(TWO + GATE, library=library)
    assert outcome.ops == ["MatMul", "GatedAct"]


OTHER = "p2 = MatMul(x, w2)\ng2, u2 = Split<axis=-1, num_outputs=2>(p2)\n"
GATE2 = spell(GELU["product then half"], "g2", "a2") + "z = Mul(a2, u2)\n"
REFUSED = {
    "fp32": (TWO + GATE, "neither all fp16 nor all bf16", {"dtype": "float"}),
    "no layer": (
        "p = Concat<axis=-1>(x, x)\ng, u = Split<axis=-1, num_outputs=2>(p)\n" + GATE,
        "not one linear layer",
        {},
    ),
    "read elsewhere": (PACKED + GATE + "z = Neg(p)\n", "also read by", {"outputs": "T y, T z"}),
    "leaves the graph": (PACKED + GATE, "leaves the graph", {"outputs": "T y, T p"}),
    "another gate": (
        PACKED + GATE + OTHER + GATE2,
        "stands for activation=silu",
        {"outputs": "T y, T z", "w2": (5, 14)},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_same_is_left(case):
    text, reason, options = REFUSED[case]
    outcome = widened(text, **options)
    said = [miss.reason for miss in outcome.fused.misses if miss.kind == "GatedGemm"]
    assert any(reason in why for why in said), said


def test_with_and_without_bias_in_one_model():
    text = PACKED + GATE + OTHER.replace("p2 = MatMul(x, w2)", "q = MatMul(x, w2)\np2 = Add(q, b)")
    text += spell(SILU["mul"], "g2", "a2") + "z = Mul(a2, u2)\n"
    outcome = widened(text, outputs="T y, T z", w2=(5, 14))
    assert outcome.ops.count("GatedGemm") == 1
    outcome.same(*SIZES)


def proof(monkeypatch, right="", wrong=""):
    shapes = {name: SHAPES[name] for name in ("wg", "wu", "bg", "bu")}
    made = model(BIASED + GATE, "T[2, S, 5] x", "T y", shapes, "float16")
    return prove_widening(monkeypatch, "GatedGemm", made, right, wrong)


def test_it_is_proven(monkeypatch):
    found = proof(monkeypatch)
    assert (found.matches, found.failed, found.whole) == (1, (), None)
    assert found.max_rel_err < 1e-2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("gate, up = Split", "up, gate = Split"), ("Mul(active, up)", "Mul(active, gate)")],
)
def test_a_wrong_definition_is_refuted(monkeypatch, right, wrong):
    found = proof(monkeypatch, right, wrong)
    assert [failure.kind for failure in found.failed] == ["GatedGemm"]
