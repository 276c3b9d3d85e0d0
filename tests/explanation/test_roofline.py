"""Bytes and launches saved, by hand; and the table of GPUs."""

from __future__ import annotations

import pytest

from opfuse.config import GPUS as NAMES
from opfuse.explanation.roofline import GPUS, LAUNCH_SECONDS, Cost
from opfuse.stages.explain import explain
from tests.explanation.planted import CORE, QKV
from tests.small import fuse_model, model

FP32 = 4
SIZES = {"B": 2, "S": 16}


def explained(text, inputs, gpu="H100", outputs="T y", **weights):
    made = model(text, inputs, outputs, weights, "float", 18)
    shapes = {
        value.name: tuple(
            SIZES.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim
        )
        for value in made.graph.input
    }
    return explain(fuse_model(made).fused, gpu, shapes)


def test_attention_saves_the_scores():
    (saving,) = explained(CORE, QKV).savings
    head = 2 * 4 * 16 * 8 * FP32
    scores = 2 * 4 * 16 * 16 * FP32
    scalar = FP32
    before = (
        (head + head)  # Transpose
        + (2 * head + scores)  # q k^T
        + (scores + scalar + scores)  # the scale
        + (scores + scores)  # Softmax
        + (scores + head + head)  # times v
    )
    after = 4 * head
    # k is transposed inside the fused op, so all five operators are one kernel.
    assert saving.kind == "FlashAttention"
    assert saving.nodes == 5
    assert saving.cost == Cost(before - after, 5 - 1)


def test_merged_projections_read_their_input_once():
    text = "g = MatMul(x, wg)\nu = MatMul(x, wu)\ns = Sigmoid(g)\na = Mul(g, s)\ny = Mul(a, u)"
    (saving,) = explained(text, "T[B, S, 32] x", wg=(32, 48), wu=(32, 48)).savings
    x, one, weight = 2 * 16 * 32 * FP32, 2 * 16 * 48 * FP32, 32 * 48 * FP32
    before = 2 * (x + weight + one) + 2 * one + 3 * one + 3 * one
    after = (x + 2 * weight + 2 * one) + 3 * one
    assert saving.kind == "GatedAct + gate_up_merge"
    assert saving.cost == Cost(before - after, 5 - 2)


def test_totals_are_sums():
    text = CORE + "h = MatMul(x, w)\nz = Relu(h)"
    found = explained(text, QKV + ", T[B, S, 32] x", outputs="T y, T z", w=(32, 32))
    assert len(found.savings) == 2
    assert found.total.bytes == sum(saving.cost.bytes for saving in found.savings)
    assert found.total.launches == sum(saving.cost.launches for saving in found.savings) == 5
    assert found.unknown == 0


def test_time_is_bytes_over_bandwidth_and_launches():
    cost = Cost(bytes=3_350_000, launches=4)
    assert cost.microseconds(GPUS["H100"]) == pytest.approx(1.0 + 4 * LAUNCH_SECONDS * 1e6)


def test_unknown_sizes_are_counted_and_cost_nothing():
    made = model(CORE, QKV, "T y", {}, "float", 18)
    found = explain(fuse_model(made).fused, "H100", {})
    assert found.unknown > 0
    assert found.savings[0].cost.launches == 4


def test_every_gpu_has_a_source():
    assert tuple(GPUS) == NAMES
    for gpu in GPUS.values():
        assert "NVIDIA" in gpu.source
        assert 1e11 < gpu.bandwidth < 1e13
        # A kernel needs tens to hundreds of operations for each byte to be bound by arithmetic.
        assert 100 < gpu.fp16_flops / gpu.bandwidth < 500
