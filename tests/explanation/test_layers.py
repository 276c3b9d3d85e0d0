"""Repeating stretches, and their pictures."""

from __future__ import annotations

import itertools
import random

import pytest

from opfuse.explanation.layout import HEIGHT, WIDTH, Box, lay_out
from opfuse.stages.explain import explain
from tests.small import fuse_model, model

LAYER = """
    sum{n} = Add(x{n}, {extra})
    y{n} = LayerNormalization(sum{n}, gamma, beta)
    h{n} = MatMul(y{n}, up)
    r{n} = Relu(h{n})
    x{m} = MatMul(r{n}, down)
"""
WEIGHTS = {"gamma": (32,), "beta": (32,), "up": (32, 64), "down": (64, 32)}


def explained(count: int, odd: int | None = None):
    text = "bias0 = Neg(bias)\n"
    for n in range(count):
        layer = LAYER.format(n=n, m=n + 1, extra="bias0")
        if n == odd:
            layer = layer.replace("Relu", "Sqrt")
        text += layer
    inputs = "T[B, S, 32] x0, T[B, S, 32] bias"
    outcome = fuse_model(model(text, inputs, f"T x{count}", WEIGHTS, "float", 18))
    shapes = {"x0": (1, 8, 32), "bias": (1, 8, 32)}
    return explain(outcome.fused, "H100", shapes)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_equal_layers_are_one_stretch(count):
    blocks = explained(count).blocks
    (layers,) = [block for block in blocks if block.count > 1]
    assert layers.count == count
    assert layers.title == f"layers 0 to {count - 1}, {count} times the same"
    assert layers.before.nodes > layers.after.nodes
    assert {"AddLayerNorm", "GemmAct"} <= {box.label for box in layers.after.boxes}


def test_a_layer_that_differs_stands_apart():
    blocks = explained(9, odd=4).blocks
    assert [block.count for block in blocks if block.count > 1] == [4, 4]
    assert "between the layers" in [block.title for block in blocks]


def test_a_model_without_layers_is_one_stretch():
    outcome = fuse_model(model("y = Neg(x)", "T[B, S, 32] x", "T y", {}, "float", 18))
    (block,) = explain(outcome.fused, "H100", {}).blocks
    assert (block.title, block.count, block.before.nodes) == ("the whole model", 1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_do_not_overlap_and_edges_go_down(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 40)
    edges = [(rng.randrange(b), b) for b in range(1, count) for _ in range(rng.randint(0, 3))]
    boxes = [Box(str(i), "", "") for i in range(count)]
    picture = lay_out(boxes, edges)
    assert len(picture.curves) == len(set(edges))
    for a, b in edges:
        assert boxes[a].y + HEIGHT < boxes[b].y
    for one, other in itertools.combinations(boxes, 2):
        assert one.y != other.y or abs(one.x - other.x) >= WIDTH
    for box in boxes:
        assert 0 <= box.x <= picture.width - WIDTH
        assert 0 <= box.y <= picture.height - HEIGHT
