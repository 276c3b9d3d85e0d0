"""Blocks spelt at random: the same counts and the same numbers, whatever the spelling."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fusions import test_attention as attention
from tests.fusions import test_layer_norm as layer_norm
from tests.fusions import test_rms_norm as rms_norm
from tests.fusions import test_rope as rope
from tests.fusions.spellings import GELU, GELU_TANH, SILU, spell
from tests.small import fuse_model, model

_SWAPPED = re.compile(r"= (Add|Mul)\(([^,()]+), ([^,()]+)\)")
_STATEMENT = re.compile(r"^\s*(\w+) = (.+)$", re.MULTILINE)
NOTHING = ["Identity({})", "Mul({}, 1.0)", "Add({}, 0.0)", "Dropout({})"]


@st.composite
def respelt(draw, text: str) -> str:
    """``text`` with operands swapped, and with nodes that do nothing behind some of its own."""

    def swapped(match: re.Match[str]) -> str:
        a, b = match[2], match[3]
        return f"= {match[1]}({b}, {a})" if draw(st.booleans()) else match[0]

    def followed(match: re.Match[str]) -> str:
        if match[2].startswith("IsNaN") or draw(st.integers(0, 3)):
            return match[0]
        nothing = draw(st.sampled_from(NOTHING)).format(f"{match[1]}_before")
        return f"{match[1]}_before = {match[2]}\n{match[1]} = {nothing}"

    return _STATEMENT.sub(followed, _SWAPPED.sub(swapped, text))


@given(st.data())
def test_rms_norms(data):
    square, unit = (
        data.draw(st.sampled_from(sorted(d))) for d in (rms_norm.SQUARES, rms_norm.UNITS)
    )
    text = data.draw(respelt(rms_norm.spelt(square, unit)))
    outcome = rms_norm.rms_norm(text, width=data.draw(st.integers(1, 17)))
    assert outcome.counts == {"RmsNorm": 1}
    outcome.same({"B": 2, "S": 3})


@given(st.data())
def test_layer_norms(data):
    keys = (data.draw(st.sampled_from(sorted(d))) for d in (layer_norm.SQUARES, layer_norm.UNITS))
    text = data.draw(respelt(layer_norm.spelt(*keys)))
    outcome = layer_norm.layer_norm(text, width=data.draw(st.integers(2, 17)))
    assert outcome.counts == {"LayerNormalization": 1}
    outcome.same({"B": 2, "S": 3})


@given(st.data())
def test_gated_units(data):
    activation = data.draw(st.sampled_from([*SILU.values(), *GELU.values(), *GELU_TANH.values()]))
    text = data.draw(respelt(spell(activation, "gate", "a") + "y = Mul(a, up)"))
    outcome = fuse_model(model(text, "T[S, 6] gate, T[S, 6] up"))
    assert outcome.counts == {"GatedAct": 1}
    outcome.same({"S": 5})


@given(st.data())
def test_ropes(data):
    halves = data.draw(st.sampled_from(sorted(rope.HALVES)))
    outcome = rope.rope(data.draw(respelt(rope.HALVES[halves] + rope.TURN)))
    assert outcome.counts == {"Rope": 1}
    outcome.same({"B": 2, "S": 3})


MASKS = {
    "none": ("logits = Identity(scores)", ""),
    "additive": ("logits = Add(scores, mask)", "T[B, 1, Q, K] mask"),
    "keep": ("logits = Where(keep, scores, -inf)", "bool[B, 1, Q, K] keep"),
    "drop": ("logits = Where(drop, -3.0e38, scores)", "bool[Q, K] drop"),
}


@given(st.data())
def test_attentions(data):
    scale = data.draw(st.sampled_from(sorted(attention.SCALES)))
    mask, inputs = MASKS[data.draw(st.sampled_from(sorted(MASKS)))]
    guard = data.draw(st.booleans())
    tail = "weights = Softmax<axis=-1>(logits)\n"
    if guard:
        tail += "undefined = IsNaN(weights)\nkept = Where(undefined, 0.0, weights)\n"
    tail += f"y = MatMul({'kept' if guard else 'weights'}, v)"
    text = data.draw(respelt(f"{attention.SCALES[scale]}\n{mask}\n{tail}"))
    outcome = attention.attention(text, inputs, size=data.draw(st.integers(1, 9)))
    assert outcome.counts == {"FlashAttention": 1}
    sizes = {"B": 2, "Q": 3, "K": 5}
    keep = np.random.default_rng(1).integers(0, 2, (2, 1, 3, 5)).astype(bool)
    keep[0, 0, 1] = False
    feeds = {"keep": keep} if "keep" in mask else {}
    feeds |= {"drop": ~keep[0, 0]} if "drop" in mask else {}
    outcome.same(sizes, **feeds)
