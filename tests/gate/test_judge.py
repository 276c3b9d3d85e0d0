"""What the parts of a lock are held against, without a model."""

from __future__ import annotations

import pytest

from opfuse.errors import InputError
from opfuse.explanation.result import FUSED, NOT, Anchor
from opfuse.gate import bounds, judge, pinned
from opfuse.gate.culprit import Scene
from opfuse.gate.result import FAILED, PASSED, SKIPPED
from opfuse.gate.shape import check_shape
from opfuse.graph.match import NearMiss


def miss(node: str, kind: str = "FlashAttention", reason: str = "has a reason") -> NearMiss:
    return NearMiss(kind, node, node, reason, "do this")


def lost(was: int, now: int, scene: Scene, nearly=()) -> str:
    locked = {"FlashAttention": {"fused": was, "nearly": list(nearly)}}
    found = {"FlashAttention": {"fused": now, "nearly": []}}
    (one,) = judge.fusions(locked, found, judge.Evidence(scene=lambda: scene))
    assert one.status == FAILED
    return one.message


def test_only_new_near_misses_are_to_blame():
    scene = Scene([miss("old"), miss("new"), miss("other", "Rope")])
    assert lost(32, 31, scene, ["old"]) == "FlashAttention 32 -> 31: new: has a reason"


def test_many_near_misses_are_counted():
    scene = Scene([miss(f"n{number}") for number in range(9)])
    text = lost(12, 4, scene)
    assert text.startswith("FlashAttention 12 -> 4: n0: has a reason; n1: ")
    assert text.endswith("n2: has a reason; and 5 more")


def test_a_node_unlike_the_others_is_to_blame():
    fused = [Anchor(f"s{n}", "Softmax", FUSED, "FlashAttention", f"f{n}") for n in range(2)]
    scene = Scene(anchors=[*fused, Anchor("odd", "Softmax", NOT), Anchor("x", "Erf", NOT)])
    assert lost(3, 2, scene) == (
        "FlashAttention 3 -> 2: odd (Softmax) fits no pattern, 2 others FlashAttention"
    )


def test_nothing_is_to_blame_where_nothing_is_left():
    assert lost(2, 0, Scene()) == "FlashAttention 2 -> 0: no candidate for it is left"


def test_new_near_misses_beside_a_full_count_are_told():
    locked = {"Rope": {"fused": 2, "nearly": ["old"]}}

    def told(fused, *nearly):
        now = {"Rope": {"fused": fused, "nearly": list(nearly)}}
        (one,) = judge.fusions(locked, now, judge.Evidence())
        assert one.status == PASSED
        return one.message

    assert told(2, "old") == told(2, "renamed") == told(2) == ""
    assert told(2, "old", "new") == "Rope: 1 more not fused: new"
    assert told(3, "old", "new").startswith("Rope 2 -> 3: --update pins the new ones; Rope: 1 more")


@pytest.mark.parametrize(
    ("was", "now", "status"),
    [
        ({"fp32": 15}, {"fp32": 17}, PASSED),  # a matter of fusions
        ({"fp16": 15}, {"fp16": 14, "fp32": 1}, FAILED),
        ({"fp16": 14, "fp32": 1}, {"fp16": 13, "fp32": 2}, FAILED),
        ({"fp16": 14, "fp32": 1}, {"fp16": 14, "fp32": 1}, PASSED),
        ({"fp32": 15}, {"fp16": 15}, FAILED),
    ],
)
def test_types_of_products(was, now, status):
    (found,) = judge.precision({"products": was}, {"products": now}, judge.Evidence())
    assert found.status == status


def test_what_more_is_kept_in_fp32_is_named():
    locked = {"products": {}, "kept": {"Softmax": 1}}
    now = {"products": {}, "kept": {"Softmax": 1, "MatMul": 1}}
    evidence = judge.Evidence(kept=[("MatMul", "lm_head: a weight of 7e4"), ("Softmax", "s: r")])
    *_, found = judge.precision(locked, now, evidence)
    assert found.message == "more is kept in fp32 (MatMul): lm_head: a weight of 7e4"


def outcome(locked, now, evidence):
    return {item.name: item for item in judge.proof(locked, now, evidence)}


def test_the_proof():
    locked = {"failed": 0, "whole": True, "max_rel_err": 2e-5}
    good = {"failed": 0, "whole": True, "max_rel_err": 2e-5}
    found = outcome(locked, good, judge.Evidence(error=1e-6))
    assert {item.status for item in found.values()} == {PASSED}
    found = outcome(locked, good, judge.Evidence(error=3e-5))
    assert found["max_rel_err"].message == "relative error 3.0e-05, the lock allows 2e-05"
    bad = {"failed": 1, "whole": False, "max_rel_err": 2e-5}
    found = outcome(locked, bad, judge.Evidence(undone=["Rope at n: differs"], whole="too large"))
    assert found["failed"].message == "fusions undone by the proof 0 -> 1: Rope at n: differs"
    assert found["whole"].message.endswith("not compared any more: too large")
    assert outcome(locked, None, judge.Evidence())["failed"].status == FAILED
    assert outcome(locked, None, judge.Evidence(broken="wrong"))["failed"].message == "wrong"
    assert outcome(None, good, judge.Evidence()) == {}


@pytest.mark.parametrize(
    ("error", "bound"),
    [(0.0, 2e-5), (4e-6, 2e-5), (9e-6, 2e-5), (1.1e-5, 1e-4), (9e-5, 5e-4)],
)
def test_the_bound_of_an_error_is_a_class(error, bound):
    assert pinned.bound(error, 1e-4) == pytest.approx(bound)


def summary(**changes):
    values = {"dtype": "FLOAT", "shape": [2], "finite": 2, "rms": 1.0, "projections": [0.5, -0.5]}
    inputs = {"x": {"shape": [2], "sha256": "aa"}}
    rest = {"computed_in": "fp64", "rtol": 1e-7, "not_run": "", "inputs": inputs}
    return {**rest, "values": {"y": {**values, **changes}}}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (summary(), ""),
        (summary(projections=[0.50000005, -0.5]), ""),
        (summary(projections=[0.5000002, -0.5]), "output y differs by 2.0e-07 of its size"),
        (summary(rms=1.1), "differs by 9.1e-02"),
        (summary(finite=1), "has the count of finite values 2 -> 1"),
        (summary(shape=[3]), "has the shape [2] -> [3]"),
        (summary(projections=[0.5]), "came or went: 2 -> 1 projections"),
        ({**summary(), "values": {}}, "output y is gone"),
        ({**summary(), "not_run": "no kernel"}, "does not run on the seeded inputs any more"),
        ({**summary(), "computed_in": "as stored"}, "computed in fp64 -> as stored"),
        ({**summary(), "inputs": {"x": {"shape": [3], "sha256": "aa"}}}, "has shape [3]"),
        ({**summary(), "inputs": {"x": {"shape": [2], "sha256": "bb"}}}, "is not the locked one"),
        ({**summary(), "inputs": {}}, "has shape none"),
    ],
    ids=str,
)
def test_outputs(now, says):
    (found,) = judge.outputs(summary(), now)
    assert says in found.message
    assert found.status == (FAILED if says else PASSED)


@pytest.mark.parametrize(
    ("was", "now", "fails"),
    [
        ({"FLOAT": "100 5000"}, {"FLOAT": "100 5000"}, False),
        ({"FLOAT": "100 5000"}, {"FLOAT": "100 5900"}, False),  # last digits
        ({"FLOAT": "100 5000"}, {"FLOAT": "100 7000"}, True),
        ({"FLOAT": "100 5000"}, {"FLOAT": "200 7000"}, False),  # another spelling
        ({"FLOAT": "100 5000"}, {"FLOAT16": "100 7000"}, False),  # the precision's business
        ({"FLOAT": "9 1", "FLOAT16": "9 1"}, {"FLOAT": "9 1", "FLOAT16": "9 -9999"}, True),
    ],
)
def test_weights(was, now, fails):
    value, weights = judge.outputs({**summary(), "weights": was}, {**summary(), "weights": now})
    assert (value.status, weights.status) == (PASSED, FAILED if fails else PASSED)
    other = {**summary(rms=1.1), "weights": now}
    (value,) = judge.outputs({**summary(), "weights": was}, other)  # one change is one line
    assert value.status == FAILED


def test_outputs_that_are_not_pinned():
    (found,) = judge.outputs({**summary(), "not_run": "it draws random numbers"}, None)
    assert found.status == SKIPPED
    assert [item.status for item in judge.outputs(summary(), None)] == [PASSED]


def test_plugins():
    was = {"version": "0.1.0", "sha256": "a" * 64}
    assert list(judge.plugins(None, was, "")) == []
    (found,) = judge.plugins(was, None, "it is not built")
    assert found.message == "no plugin library: it is not built"
    found = list(judge.plugins(was, {"version": "0.2.0", "sha256": "b" * 64}, ""))
    assert [item.status for item in found] == [FAILED, FAILED]


@pytest.mark.parametrize(("value", "most"), [(500.0, 550.0), (812.34, 894.0), (0.1, 0.11)])
def test_a_limit_of_time_has_three_digits(value, most):
    assert pinned.rounded_up(value, 0.1) == pytest.approx(most)


def test_a_bundle_of_other_versions(tmp_path):
    lock = {"tensorrt": {"tensorrt-rtx": "1.7.1"}, "plugins": {"version": "1", "sha256": "aa"}}
    built = bounds.Built(tmp_path / "b.opfuse", 10, "", "", ("tensorrt_rtx", "1.4.0"), "bb")
    found = list(bounds.bundle(lock, built))
    assert "built with tensorrt_rtx 1.4.0, the lock has 1.7.1" in found[0].message
    assert "another plugin library" in found[1].message
    same = bounds.Built(tmp_path / "b.opfuse", 10, "", "", ("tensorrt_rtx", "1.7.1"), "aa")
    assert list(bounds.bundle(lock, same)) == []
    assert list(bounds.bundle(lock, bounds.Built(tmp_path / "b.engine", 10, "", ""))) == []


@pytest.mark.parametrize(
    ("lock", "place"),
    [
        ({"fusions": []}, "fusions is not an object"),
        ({"fusions": {"X": {"fused": 1.5, "nearly": []}}}, "fusions.X.fused is not a whole"),
        ({"fusions": {"X": {"fused": True, "nearly": []}}}, "fusions.X.fused is not a whole"),
        ({"fusions": {"X": {"fused": 1}}}, "fusions.X.nearly is not there"),
        ({"fusions": {"X": {"fused": 1, "nearly": [1]}}}, "fusions.X.nearly[0] is not a text"),
        ({"options": {"rtol": "1"}}, "options.rtol is not a number"),
        ({"options": {"opt_shapes": {"x": ["a"]}}}, "options.opt_shapes.x[0] is not a whole"),
        ({"proof": 3}, "proof is not an object"),
        ({"bounds": {"latency_us": {"median": 1}}}, "bounds.latency_us.gpu is not there"),
    ],
    ids=str,
)
def test_a_slip_of_the_hand(lock, place):
    with pytest.raises(InputError) as caught:
        check_shape(lock, "opfuse.lock")
    assert caught.value.what.startswith(f"opfuse.lock: {place}")


def test_what_is_not_there_is_not_pinned():
    check_shape({"options": {}, "proof": None, "plugins": None, "verdicts": 3}, "opfuse.lock")
