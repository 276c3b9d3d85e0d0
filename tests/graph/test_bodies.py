"""Fused models with their bodies written out compute what they did."""

from __future__ import annotations

import numpy as np
import pytest

from models import tiny
from opfuse.graph.bodies import INNER, written_out
from opfuse.precision.probe import probe
from tests.small import compare, draw, fuse_model, session

MODELS = {"llama": tiny.llama, "bert": tiny.bert, "vit": tiny.vit}


def feeds(made):
    drawn = draw(made, {"batch": 2, "seq": 6}, 0)
    return {name: np.ones_like(a) if "mask" in name else a for name, a in drawn.items()}


@pytest.mark.parametrize("name", MODELS)
def test_written_out_models_are_the_same(name):
    outcome = fuse_model(MODELS[name]().model())
    flat = type(outcome.after)()
    flat.CopyFrom(outcome.after)
    nodes = list(written_out(outcome.after))
    del flat.graph.node[:], flat.functions[:]
    flat.graph.node.extend(nodes)
    drawn = feeds(outcome.before)
    for want, have in zip(
        session(outcome.after).run(None, drawn), session(flat).run(None, drawn), strict=True
    ):
        compare(name, want, have)


def test_a_probe_measures_what_it_is_asked_for():
    outcome = fuse_model(tiny.bert().model())
    after = outcome.after
    attention = next(node for node in after.graph.node if node.op_type == "FlashAttention")
    asked = {attention.output[0], f"{attention.name}{INNER}product", "not there"}
    made, names = probe(after, asked)
    assert set(names) == asked - {"not there"}
    drawn = feeds(outcome.before)
    found = dict(zip(names, session(made).run(None, drawn), strict=True))
    after.graph.output.add(name=attention.output[0])
    values = session(after).run([attention.output[0]], drawn)[0]
    assert np.isclose(found[attention.output[0]], np.abs(values).max())
    assert found[f"{attention.name}{INNER}product"] > 0
