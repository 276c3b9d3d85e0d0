"""The order of the stages, and what the pipeline does with a proof that refutes."""

from __future__ import annotations

from dataclasses import replace

import pytest

import opfuse
from models import tiny
from opfuse.errors import CheckFailed, InputError
from opfuse.numerics.whole import Comparison
from opfuse.progress import Progress
from opfuse.stages import prove as stage
from opfuse.stages.prove import Failure, Proof


@pytest.fixture
def llama(tmp_path):
    return tiny.llama(layers=1).write(tmp_path / "llama.onnx")


def judge(monkeypatch, verdict):
    """Put a judge of our own in the place of the proof; it sees the matches and the round."""
    rounds = []

    def prove(source, model, graph, matches, config, progress):
        rounds.append(matches)
        return verdict(matches, len(rounds))

    monkeypatch.setattr(stage, "prove", prove)
    return rounds


def failures(matches, kind):
    signatures = {match.signature for match in matches if match.kind == kind}
    return tuple(Failure(item, kind, ("a node",), "it differs") for item in sorted(signatures))


def test_what_is_refuted_is_undone_and_reported(llama, tmp_path, monkeypatch):
    rounds = judge(
        monkeypatch,
        lambda matches, _: Proof(3, failures(matches, "Rope"), 1e-6, Comparison({}, 1e-4)),
    )
    report = opfuse.fuse(llama, tmp_path / "fused.onnx")
    facts = report.as_dict()
    assert len(rounds) == 2
    assert facts["fusions"]["Rope"]["fused"] == 0
    assert {item["reason"] for item in facts["fusions"]["Rope"]["nearly"]} == {"it differs"}
    assert facts["fusions"]["FlashAttention"]["fused"] == 1
    assert facts["proof"]["failed"] == len(facts["proof"]["failures"]) >= 1
    assert opfuse.verify(llama, tmp_path / "fused.onnx").passed


def test_a_whole_model_that_differs_is_not_written(llama, tmp_path, monkeypatch):
    broken = Comparison({}, 1e-4, refused="it does not load")
    judge(monkeypatch, lambda matches, _: Proof(3, (), 0.0, broken))
    with pytest.raises(CheckFailed, match="it does not load") as caught:
        opfuse.fuse(llama, tmp_path / "fused.onnx")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "fused.onnx").exists()


def test_a_refutation_that_does_not_go_away_ends_the_run(llama, tmp_path, monkeypatch):
    forever = (Failure("a signature of nothing", "Rope", (), "it differs"),)
    rounds = judge(monkeypatch, lambda *_: Proof(1, forever, 0.0, None))
    with pytest.raises(CheckFailed):
        opfuse.fuse(llama, tmp_path / "fused.onnx")
    assert len(rounds) == 2


def test_a_model_that_cannot_be_run_is_noted_and_not_refused(llama, tmp_path, monkeypatch):
    unknown = Comparison({}, 1e-4, not_run="no kernel for Frob")
    judge(monkeypatch, lambda *_: Proof(1, (), 0.0, unknown))
    report = opfuse.fuse(llama, tmp_path / "fused.onnx")
    assert report.as_dict()["proof"]["whole"]["not_run"] == "no kernel for Frob"


def test_every_stage_is_told_once_in_order(llama, tmp_path):
    seen = []

    class Watch(Progress):
        def started(self, name):
            seen.append(name)

    from opfuse.config import Config
    from opfuse.pipeline import run

    config = Config(llama, tmp_path / "fused.onnx")
    report = run(config, "fuse", Watch())
    assert seen == ["load", "normalise", "fuse", "prove", "save"]
    assert list(report.timings) == seen
    run(replace(config, output=None), "explain", Watch())
    assert seen[5:] == ["load", "normalise", "fuse", "explain"]


@pytest.mark.parametrize("goal", ["fuse", "build"])
def test_an_output_is_needed_before_any_work(llama, goal):
    from opfuse.config import Config
    from opfuse.pipeline import run

    with pytest.raises(InputError, match="no output file"):
        run(Config(llama), goal)
