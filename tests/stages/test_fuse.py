"""Fusing is deterministic and idempotent, and its result is a model that the checker accepts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from models import tiny
from opfuse.graph.match import NearMiss
from opfuse.stages.fuse import _widest
from tests.small import Outcome, compare, draw, fuse_model, model, session

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = {"batch": 2, "seq": 5}
TINY = {
    "llama": lambda dtype: tiny.llama(layers=1, dtype=dtype),
    "llama guarded": lambda dtype: tiny.llama(layers=1, dtype=dtype, nan_guard=True),
    "bert": lambda dtype: tiny.bert(layers=1, dtype=dtype),
    "vit": lambda dtype: tiny.vit(layers=1, dtype=dtype),
}
COUNTS = {
    "llama": {
        "AddRmsNorm": 2,
        "RmsNorm": 1,
        "FlashAttention": 1,
        "Rope": 2,
        "GatedAct": 1,
        "qkv_merge": 1,
        "gate_up_merge": 1,
    },
    "bert": {
        "LayerNormalization": 1,
        "AddLayerNorm": 2,
        "FlashAttention": 1,
        "GemmAct": 1,
        "qkv_merge": 1,
    },
    "vit": {
        "LayerNormalization": 1,
        "AddLayerNorm": 2,
        "FlashAttention": 1,
        "GemmAct": 1,
        "qkv_merge": 1,
    },
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny models by name and dtype, each fused once."""
    known: dict[tuple[str, type], Outcome] = {}

    def outcome(name: str, dtype: type = np.float32) -> Outcome:
        if (name, dtype) not in known:
            path = tmp_path_factory.mktemp("tiny") / "model.onnx"
            TINY[name](dtype).write(path)
            known[name, dtype] = fuse_model(onnx.load(path))
        return known[name, dtype]

    return outcome


def feeds(made: onnx.ModelProto, seed: int, batch: int, seq: int) -> dict[str, np.ndarray]:
    """Random token ids; a mask whose last row is padded; positions."""
    drawn = draw(made, {"batch": batch, "seq": seq}, seed)
    if "attention_mask" in drawn:
        drawn["attention_mask"] = np.ones((batch, seq), np.int64)
        drawn["attention_mask"][-1, seq // 2 + 1 :] = 0
    if "position_ids" in drawn:
        drawn["position_ids"] = np.broadcast_to(np.arange(seq), (batch, seq)).copy()
    return drawn


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", TINY)
def test_whole_models_fuse_and_keep_their_numbers(built, name, dtype):
    outcome = built(name, dtype)
    assert outcome.counts == COUNTS[name.split()[0]]
    onnx.checker.check_model(outcome.after, full_check=True)
    runs = [session(made) for made in (outcome.before, outcome.after)]
    for seed, (batch, seq) in enumerate([(2, 5), (1, 1), (3, 9)]):
        drawn = feeds(outcome.before, seed, batch, seq)
        for want, have in zip(*(run.run(None, drawn) for run in runs), strict=True):
            compare(f"{name}, batch {batch}, seq {seq}, seed {seed}", want, have)


@pytest.mark.parametrize("name", TINY)
def test_two_runs_give_the_same_bytes(built, name):
    outcome = built(name)
    again = fuse_model(outcome.before)
    assert again.after.SerializeToString() == outcome.after.SerializeToString()
    assert again.fused.misses == outcome.fused.misses
    assert [m.signature for m in again.fused.matches] == [
        m.signature for m in outcome.fused.matches
    ]


_DIGEST = """
import hashlib, sys
import onnx
from tests.small import fuse_model
outcome = fuse_model(onnx.load(sys.argv[1]))
text = outcome.after.SerializeToString() + repr(outcome.fused.misses).encode()
text += repr([match.signature for match in outcome.fused.matches]).encode()
print(hashlib.sha256(text).hexdigest())
"""


def test_the_order_of_hashes_decides_nothing(built, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(built("llama guarded").before, path)
    digests = set()
    for seed in ("0", "1"):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "optimizer")])
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


@pytest.mark.parametrize("name", TINY)
def test_a_fused_model_fuses_to_itself(built, name):
    first = built(name)
    second = fuse_model(first.after)
    assert second.counts == {
        kind: count for kind, count in first.counts.items() if not kind.endswith("_merge")
    }
    drawn = feeds(first.before, 7, 2, 5)
    for want, have in zip(
        *(session(made).run(None, drawn) for made in (first.after, second.after)), strict=True
    ):
        compare(name, want, have)


@pytest.mark.parametrize("domain", ["custom", "com.microsoft"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_an_operator_of_another_domain_is_not_taken_for_the_one_of_its_name(built, name, domain):
    """Whatever computes numbers, one at a time; what computes sizes may be known without it."""
    before = onnx.shape_inference.infer_shapes(built(name).before, data_prop=True)
    before.opset_import.append(helper.make_opsetid(domain, 1))
    floats = {v.name for v in before.graph.value_info if v.type.tensor_type.elem_type == 1}
    seen = set()
    for node in before.graph.node:
        if node.op_type in seen or not floats.issuperset(node.output) or node.domain:
            continue
        seen.add(node.op_type)
        node.domain = domain
        after = fuse_model(before).after
        (kept,) = [other for other in after.graph.node if other.domain == domain]
        assert (kept.op_type, list(kept.output)) == (node.op_type, list(node.output))
        node.domain = ""
    assert len(seen) > 8


@pytest.mark.parametrize("name", TINY)
def test_ports_keep_their_names_order_types_and_shapes(built, name):
    outcome = built(name)
    assert list(outcome.after.graph.input) == list(outcome.before.graph.input)
    assert list(outcome.after.graph.output) == list(outcome.before.graph.output)


@pytest.mark.parametrize("name", TINY)
def test_every_fused_node_calls_a_function_of_the_model(built, name):
    made = built(name).after
    functions = {f.name: f for f in made.functions}
    calls = [node for node in made.graph.node if node.domain == "opfuse"]
    assert {node.op_type for node in calls} == functions.keys()
    for node in calls:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"opfuse"
        assert set(attributes) <= set(functions[node.op_type].attribute)
        assert len(node.input) == len(functions[node.op_type].input)
        assert "" not in node.input
    (domain,) = [entry.version for entry in made.opset_import if entry.domain == "opfuse"]
    assert domain == 1


def test_no_two_tensors_and_no_two_nodes_share_a_name(built):
    graph = built("llama guarded").after.graph
    tensors = [name for node in graph.node for name in node.output if name]
    tensors += [t.name for t in graph.initializer] + [v.name for v in graph.input]
    assert len(tensors) == len(set(tensors))
    nodes = [node.name for node in graph.node if node.name]
    assert len(nodes) == len(set(nodes))


def test_no_initializer_is_left_that_nothing_reads(built):
    graph = built("llama").after.graph
    read = {name for node in graph.node for name in node.input}
    assert {t.name for t in graph.initializer} <= read


def test_a_veto_leaves_the_original_and_gives_its_reason(built):
    before = built("llama").before
    (signature,) = {m.signature for m in built("llama").fused.matches if m.kind == "FlashAttention"}
    outcome = fuse_model(before, {signature: "the proof found 1e9"})
    assert "FlashAttention" not in outcome.counts
    assert "qkv_merge" not in outcome.counts
    assert any(miss.reason == "the proof found 1e9" for miss in outcome.fused.misses)
    assert outcome.counts["Rope"] == 2


@pytest.mark.parametrize("name", TINY)
def test_both_sides_of_a_match_take_the_same_inputs_to_the_same_outputs(built, name):
    matches = built(name).fused.matches
    assert matches
    for match in matches:
        written = [{t.name for t in side.outputs} for side in (match.before, match.after)]
        assert written[0] == written[1] != set()
        known = {t.name for t in (*match.before.inputs, *match.before.constants)}
        assert {t.name for t in match.after.inputs} <= known


def test_equal_matches_have_one_signature_and_others_have_others():
    text = """
        a0 = Add(x, r)
        a = LayerNormalization(a0, g, b)
        c0 = Add(a, r)
        c = LayerNormalization(c0, h, i)
        d0 = Add(c, r)
        y = LayerNormalization<epsilon=0.5>(d0, g, b)
    """
    weights = dict.fromkeys("gbhi", (16,))
    outcome = fuse_model(model(text, "T[S, 16] x, T[S, 16] r", weights=weights))
    first, second, third = [match.signature for match in outcome.fused.matches]
    assert first == second != third
    outcome.same({"S": 3})


def test_bodies_are_not_rewritten_but_kept():
    text = """
        y = If (flag) <
            then_branch = yes () => (T[A, B] a) { s = Sigmoid(x) a = Mul(x, s) },
            else_branch = no () => (T[C, D] b) { b = Neg(x) }
        >
    """
    outcome = fuse_model(model(text, "T[S, 4] x, bool flag"))
    assert outcome.counts == {}
    for flag in (True, False):
        outcome.same({"S": 3}, flag=np.array(flag))


def test_of_candidates_for_one_thing_the_widest_is_told():
    def miss(kind, *fitting):
        return NearMiss(kind, fitting[0], "node", "reason", fitting=fitting)

    narrow, wide = miss("RmsNorm", "a", "b"), miss("RmsNorm", "a", "b", "c")
    inner, around = miss("MaskedSoftmax", "p"), miss("FlashAttention", "y", "p")
    apart = miss("MaskedSoftmax", "q")
    assert list(_widest([narrow, wide, inner, around, apart])) == [wide, around, apart]
