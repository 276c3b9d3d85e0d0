"""The fuzzer of benchmarks/ on a fixed budget: no spelling and no mutant may fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from benchmarks.fuzzing import cases
from benchmarks.fuzzing.blocks import feeds, write
from benchmarks.fuzzing.plans import FAMILIES
from benchmarks.fuzzing.writer import Breaks

OPSETS = (13, 18, 23)


BLOCKS = [plan for plan in FAMILIES if plan.part != "image"]
# These leave the numbers as they are: another reads what stands inside, or it is written otherwise.
STRUCTURAL = {
    "a mean that drops its axis",
    "a second reader",
    "a weight with another reader",
    "an fp64 island",
    "an inner graph output",
}


@pytest.mark.parametrize("family", BLOCKS, ids=lambda plan: plan.family)
def test_every_family_has_its_fusions(family):
    counts = cases.canonical(family).counts
    norm = "RmsNorm" if family.norm == "rms" else "LayerNormalization"
    per_half = {"pre": 2, "post": 2, "parallel": 1, "sandwich": 4, "behind": 2}[family.place]
    heads = 2 if family.qk_norm else 0
    assert counts[norm] + counts[f"Add{norm.replace('Normalization', 'Norm')}"] == per_half + heads
    assert counts["FlashAttention"] == 1
    assert counts["Rope"] == (2 if family.rope else 0)
    assert counts["GatedAct" if family.gated else "GemmAct"] == 1
    assert counts["qkv_merge"] == (0 if family.packed else 1)


def test_the_image_has_its_fusion():
    (image,) = [plan for plan in FAMILIES if plan.part == "image"]
    assert cases.canonical(image).counts["GroupNormSilu"] == 1


def test_every_break_changes_something():
    """A mutant that changes nothing is none."""
    changed = {}
    for plan in FAMILIES:
        breaks = Breaks()
        whole = write(plan, None, breaks)
        want = cases._run(whole, plan)
        for name in set(breaks.places) - {name for name, found in changed.items() if found}:
            broken = write(plan, None, Breaks(name, 0))
            assert broken != whole
            if name not in STRUCTURAL and name != "a mask of rank 5":
                changed[name] = bool(cases._differ(plan, want, cases._run(broken, plan)))
    assert len(changed) > 35
    assert [name for name, found in changed.items() if not found] == []


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_spellings(start):
    found = [cases.spelling(0, index, OPSETS) for index in range(start, start + 20)]
    assert [verdict.detail for verdict in found if verdict.failed] == []


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_mutants(start):
    found = [cases.mutant(0, index, OPSETS) for index in range(start, start + 20)]
    assert [verdict.detail for verdict in found if verdict.failed] == []


FOUND = {
    "a mask of its own batch, and -1 behind a Gemm": (cases.spelling, 6658),
    "a LayerNorm of another power behind a Cast": (cases.mutant, 494),
    "scores times the lowest of fp16": (cases.mutant, 3614),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_stays_mended(case):
    judge, index = FOUND[case]
    verdict = judge(31415, index)
    assert not verdict.failed, verdict.detail


def test_a_mean_over_another_axis_is_none_of_one_token_in_fp16(monkeypatch):
    """It would leave the sign of each value, which one ulp turns."""
    (bert,) = [plan for plan in FAMILIES if plan.family == "bert"]
    plan = replace(bert, part="mlp", half=True, sizes=(3, 1))
    broken = write(plan, None, Breaks("mean over another axis", 1))
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((3, 1, 24)).astype(np.float16)
        runs = []
        for values in (x, np.nextafter(x, np.float16(np.inf))):
            given = {**feeds(plan), "x": values}
            monkeypatch.setattr(cases, "feeds", lambda _, given=given: given)
            runs.append(cases._run(broken, plan))
        assert cases._differ(plan, *runs) == ""


def test_fp16_scores_are_not_rounded_to_integers():
    """One ulp of a score makes another integer, and that no fault of a fusion."""
    for half in (False, True):
        breaks = Breaks()
        write(replace(FAMILIES[0], half=half), None, breaks)
        assert ("scores rounded to integers" in breaks.places) is not half


def test_a_case_hangs_on_its_seed_alone():
    models = [write(FAMILIES[0], np.random.default_rng(7)) for _ in range(2)]
    assert models[0] == models[1]
    assert models[0] != write(FAMILIES[0], np.random.default_rng(8))


def test_a_spelling_is_a_valid_model():
    for seed, family in enumerate(FAMILIES):
        onnx.checker.check_model(write(family, np.random.default_rng(seed)), full_check=True)


def test_the_judge_sees_another_number(monkeypatch):
    """A fusion that changes a result is what all of this is for."""
    honest = cases.export

    def lying(fused, source):
        model = honest(fused, source)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f *= 3000
        return model

    monkeypatch.setattr(cases, "export", lying)
    assert {cases.spelling(0, index).result for index in range(10)} >= {"wrong"}


def test_the_judge_sees_what_is_not_said(monkeypatch):
    honest = cases.fuse

    def silent(normal):
        fused = honest(normal)
        return type(fused)(**{**vars(fused), "misses": ()})

    monkeypatch.setattr(cases, "fuse", silent)
    assert {cases.mutant(0, index).result for index in range(10)} >= {"silent"}


def test_breaks_are_counted():
    breaks = Breaks("here", 1)
    assert [breaks.here("here"), breaks.here("there"), breaks.here("here")] == [False, False, True]
    assert breaks.places == ["here", "there", "here"]
