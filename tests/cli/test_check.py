"""opfuse check: what a lock catches, and how the command says so."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

import opfuse
from models import tiny
from opfuse import lockfile
from opfuse.runtime import library
from tests.gate import planted
from tests.locked import LOCK, bench_report, edited, failures
from tests.small import model


def test_a_clean_run_passes(cli, place):
    before = (place / LOCK).read_bytes()
    result = cli("check", "bert.onnx")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [f"{LOCK}: all 30 expectations hold"]
    assert (place / LOCK).read_bytes() == before


def test_quiet_tells_only_what_failed(cli, place):
    assert cli("check", "bert.onnx", "-q").out == ""
    planted.save(place / "bert.onnx", planted.epsilon)
    loud, quiet = cli("check", "bert.onnx"), cli("check", "bert.onnx", "-q")
    assert quiet.code == 1
    assert quiet.out == loud.out
    assert failures(quiet)


@pytest.mark.parametrize(
    ("change", "section", "says"),
    [
        (
            planted.axis,
            "fusions.FlashAttention",
            "FlashAttention 3 -> 2: Softmax_57 (Softmax): works along axis 2, want the last of 4; "
            "try: work along the last axis",
        ),
        (
            planted.stranger,
            "fusions.FlashAttention",
            "FlashAttention 3 -> 2: Softmax_57 (Softmax) became MaskedSoftmax, 2 others "
            "FlashAttention: its result goes to 'stranger' (Abs), where others have MatMul",
        ),
        (planted.erf, "fusions.GemmAct", "GemmAct 3 -> 2: Div_67 (Div): "),
        (planted.epsilon, "outputs.last_hidden_state", "differs by "),
        (planted.weight, "outputs.last_hidden_state", "differs by "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_change_is_one_clear_line(cli, place, change, section, says):
    planted.save(place / "bert.onnx", change)
    result = cli("check", "bert.onnx")
    assert result.code == 1, result.err
    (line,) = [line for line in failures(result) if line.startswith(f"FAILED {section}: ")]
    assert says in line


def test_a_weight_that_no_output_shows(cli, place):
    planted.save(place / "bert.onnx", planted.unseen)
    result = cli("check", "bert.onnx")
    assert result.code == 1, result.err
    (line,) = failures(result)
    assert line.startswith("FAILED outputs.weights: weights (FLOAT) differ, which no output")


def test_another_spelling_of_the_same_weights_passes(cli, place):
    planted.save(place / "bert.onnx", planted.respelled)
    result = cli("check", "bert.onnx")
    assert result.code == 0, result.out


def test_a_merge_that_goes_with_an_attention_says_so(cli, place):
    planted.save(place / "bert.onnx", planted.axis)
    (line,) = [line for line in failures(cli("check", "bert.onnx")) if "qkv_merge" in line]
    assert line.endswith("qkv_merge 3 -> 2: it goes with FlashAttention")


def test_a_numeric_change_alone_fails_nothing_else(cli, place):
    planted.save(place / "bert.onnx", planted.epsilon)
    assert len(failures(cli("check", "bert.onnx"))) == 1


def test_twelve_layers_take_less_than_ten_seconds(spawn, tmp_path):
    """Of processor time, on the cores that there are: the clock of a busy machine says nothing."""
    model = tiny.bert(layers=12, hidden=256, heads=4, intermediate=1024)
    model.write(tmp_path / "bert.onnx")
    assert spawn("check", "bert.onnx", "--update", cwd=tmp_path).code == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spawn("check", "bert.onnx", cwd=tmp_path).code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_more_fusions_than_locked_pass_with_a_note(cli, place):
    edited(place, lambda lock: lock["fusions"]["GemmAct"].update(fused=2))
    result = cli("check", "bert.onnx")
    assert result.code == 0
    assert "note GemmAct 2 -> 3: --update pins the new ones" in result.out


def test_another_model_type_is_a_precision_change(cli, place):
    planted.save(place / "bert.onnx", dtype=np.float16)
    result = cli("check", "bert.onnx")
    assert result.code == 1
    assert any("products and attentions in fp32 15 -> fp16 15" in x for x in failures(result))


def test_an_epsilon_of_no_size_and_a_rounding_on_the_way(cli, place):
    """Neither moves an output: 1e-11 for 1e-12 by 1e-11, and Casts are none in double precision."""
    planted.save(place / "bert.onnx", planted.smaller_epsilon)
    (line,) = failures(cli("check", "bert.onnx"))
    assert line == "FAILED precision.epsilons: nodes by epsilon: 1e-12 7 -> 1e-11 1, 1e-12 6"
    planted.save(place / "bert.onnx", planted.rounding)
    (line,) = failures(cli("check", "bert.onnx"))
    assert line == "FAILED precision.casts: Casts 0 -> 2"


def test_an_operator_that_sinks_to_half_precision(cli, place):
    """Products and outputs stay what they were: these are computed in double precision."""
    island = "h = MatMul(x, w)\nf = Cast<to=1>(h)\ne = Exp(f)\nn = Cast<to=10>(e)\ny = MatMul(n, w)"
    sunk = "h = MatMul(x, w)\ne = Exp(h)\ny = MatMul(e, w)"
    for name, text in (("island", island), ("sunk", sunk)):
        made = model(text, "T[2, 8] x", weights={"w": (8, 8)}, dtype="float16")
        onnx.save(made, place / f"{name}.onnx")
    assert cli("check", "island.onnx", "--lock", "e.lock", "--update").code == 0
    assert cli("check", "island.onnx", "--lock", "e.lock").code == 0
    result = cli("check", "sunk.onnx", "--lock", "e.lock")
    assert failures(result) == ["FAILED precision.delicate: Exp in fp32 1 -> fp16 1"]


def test_another_precision_than_locked(cli, place):
    result = cli("check", "bert.onnx", "--fp16")
    assert result.code == 1
    assert "FAILED options.precision: option precision keep -> fp16" in result.out


def test_a_locked_precision_needs_no_option(cli, place):
    assert cli("check", "bert.onnx", "--fp16", "--update").code == 0
    result = cli("check", "bert.onnx")
    assert result.code == 0, result.out
    result = cli("check", "bert.onnx", "--precision", "keep")
    assert (result.code, "option precision fp16 -> keep" in result.out) == (1, True)
    section = json.loads((place / LOCK).read_text())["precision"]
    assert section["products"] == {"fp16": 15}
    edited(place, lambda lock: lock["precision"].update(casts=0))
    assert "FAILED precision.casts: Casts 0 -> " in cli("check", "bert.onnx").out


def test_another_plugin_library(cli, place):
    real = library.find()
    other = place / "libopfuse_plugins.so"
    other.write_bytes(real.read_bytes() + b"\0")
    result = cli("check", "bert.onnx", "--plugins", other)
    assert result.code == 1
    (line,) = failures(result)
    assert line.startswith("FAILED plugins.sha256: another plugin library than the locked one")


def test_another_tensorrt(cli, place):
    edited(place, lambda lock: lock["tensorrt"].update({"tensorrt-rtx": "1.6.0"}))
    result = cli("check", "bert.onnx")
    assert result.code == 1
    (line,) = failures(result)
    assert line.startswith("FAILED tensorrt.tensorrt-rtx: tensorrt-rtx 1.6.0 -> 1.")
    assert "try: pip install 'tensorrt-rtx-cu13==1.6.0'" in line


def test_update_prints_the_difference_as_a_table(cli, place):
    planted.save(place / "bert.onnx", planted.axis)
    result = cli("check", "bert.onnx", "--update")
    assert result.code == 0
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.out.splitlines()
        if line.startswith("│")
    ]
    assert ["fusions.FlashAttention.fused", "3", "2"] in cells
    assert cli("check", "bert.onnx").code == 0


def test_update_keeps_the_sections_of_others(cli, place):
    edited(place, lambda lock: lock.update(verdicts={"AddLayerNorm": [1, "plugin"]}, later=3))
    assert cli("check", "bert.onnx", "--update").code == 0
    lock = json.loads((place / LOCK).read_text())
    assert (lock["verdicts"], lock["later"]) == ({"AddLayerNorm": [1, "plugin"]}, 3)


def test_update_without_a_difference_leaves_the_file(cli, place):
    stamp = (place / LOCK).stat().st_mtime_ns
    result = cli("check", "bert.onnx", "--update")
    assert result.out.strip() == f"{LOCK} is as it was"
    assert (place / LOCK).stat().st_mtime_ns == stamp


def test_update_keeps_a_tolerance_that_somebody_set(cli, place):
    edited(place, lambda lock: lock["outputs"].update(rtol=1e-4))
    planted.save(place / "bert.onnx", planted.weight)
    assert cli("check", "bert.onnx").code == 0
    assert cli("check", "bert.onnx", "--update").code == 0
    assert json.loads((place / LOCK).read_text())["outputs"]["rtol"] == 1e-4


def test_the_json_has_every_expectation(cli, place):
    planted.save(place / "bert.onnx", planted.axis)
    result = cli("check", "bert.onnx", "--json", "--report", "check.json")
    report = json.loads(result.out)
    assert report == json.loads((place / "check.json").read_text())
    assert (report["passed"], report["failed"]) == (False, 3)
    found = {item["name"]: item for item in report["expectations"]}
    assert found["FlashAttention"]["node"] == "Softmax_57 (Softmax)"
    assert report["nearly"][0]["kind"] == "FlashAttention"


def test_reports_of_every_format(cli, place):
    planted.save(place / "bert.onnx", planted.axis)
    names = [f"check.{kind}" for kind in ("json", "txt", "html", "md", "sarif", "junit.xml")]
    options = [part for name in names for part in ("--report", name)]
    assert cli("check", "bert.onnx", *options).code == 1
    for name in names:
        text = (place / name).read_text().replace("\\", "")
        assert "Softmax_57 (Softmax): works along axis 2, want the last of 4" in text, name
    log = json.loads((place / "check.sarif").read_text())
    (first, *_) = log["runs"][0]["results"]
    line = first["locations"][0]["physicalLocation"]["region"]["startLine"]
    assert "FlashAttention" in (place / LOCK).read_text().splitlines()[line - 1]


def test_no_lock(cli, place):
    (place / LOCK).unlink()
    cli("check", "bert.onnx").refused(2, "there is no lock opfuse.lock", "--update")


def test_a_lock_that_is_none(cli, place):
    text = (place / LOCK).read_text()
    for broken, says in (
        (text[:-20], "is no lock"),
        ("[]", "no number 'format'"),
        (f"<<<<<<< HEAD\n{text}", "resolve the merge conflict"),
        (text.replace('"fused": 3', '"fused": "3"', 1), "is not a whole number"),
        (text.replace('"fused": 3', '"fused": NaN', 1), "NaN is no number"),
        (text.replace('"casts": 0,', "").replace('"bounds"', '"format"', 1), "twice"),
    ):
        (place / LOCK).write_text(broken)
        cli("check", "bert.onnx").refused(2, LOCK, says)
        cli("check", "bert.onnx", "--update").refused(2, LOCK, says)
        assert (place / LOCK).read_text() == broken


def test_options_that_draw_other_inputs(cli, place):
    planted.save(place / "bert.onnx", planted.weight)
    result = cli("check", "bert.onnx", "--seed", "3")
    assert failures(result) == ["FAILED options.seed: option seed 0 -> 3"]
    assert "skipped outputs: the inputs are drawn from another seed" in result.out


def test_a_lock_with_sections_taken_out(cli, place):
    edited(place, lambda lock: [lock.pop(name) for name in ("fusions", "plugins", "model")])
    planted.save(place / "bert.onnx", planted.axis)
    result = cli("check", "bert.onnx")
    assert [line.split(":")[0] for line in failures(result)] == ["FAILED outputs.last_hidden_state"]
    edited(place, lambda lock: [lock.pop(name) for name in list(lock) if name != "format"])
    cli("check", "bert.onnx").refused(2, "pins nothing of bert.onnx yet")


def test_reports_that_would_replace_what_is_read(cli, place):
    shutil.copy(place / LOCK, place / "lock.json")
    options = ["--lock", "lock.json", "--report", "./lock.json"]
    cli("check", "bert.onnx", *options).refused(2, "lock.json itself")
    bench = bench_report(place, 5.0)
    cli("check", "bert.onnx", "--bench", bench, "--report", bench).refused(2, "itself")


def test_a_lock_of_a_newer_format(cli, place):
    edited(place, lambda lock: lock.update(format=lockfile.FORMAT + 1))
    cli("check", "bert.onnx").refused(2, "format 2", "install the opfuse that wrote it")


def test_a_lock_of_another_model(cli, place):
    cli("check", Path(__file__).parents[2] / "models" / "vit.onnx").refused(
        2, "lock of another model, bert.onnx", "pixel_values", "--lock", "--update"
    )


def test_a_lock_with_verdicts_alone(cli, place):
    (place / LOCK).write_text('{"format": 1, "verdicts": {}}')
    cli("check", "bert.onnx").refused(2, "pins nothing of bert.onnx yet", "--update")
    assert cli("check", "bert.onnx", "--update").code == 0
    assert json.loads((place / LOCK).read_text())["verdicts"] == {}


def test_bad_files(cli, place):
    (place / "none.json").write_text("{}")
    cli("check", "bert.onnx", "--bench", "none.json").refused(2, "no report of opfuse bench")
    cli("check", "bert.onnx", "--bench", "gone.json").refused(2, "gone.json")
    cli("check", "bert.onnx", "--engine", "gone.engine").refused(2, "gone.engine")
    cli("check", "bert.onnx", "--report", "x.yaml").refused(2, ".yaml")
    cli("check", "bert.onnx", "--update", "--lock", "bert.onnx").refused(2, "bert.onnx")
    cli("check", "bert.onnx", "--plugins", "gone.so").refused(3, "gone.so")


@pytest.mark.parametrize("options", [[], ["--fp16"]], ids=["keep", "fp16"])
def test_the_same_bytes_on_another_machine(
    spawn, place, tmp_path_factory, monkeypatch, environment, options
):
    """As far as one can be played here: folder, home, threads, vector instructions, BLAS."""
    files = []
    vectors = {"1": "", "2": " ".join(__cpu_dispatch__)}  # that NumPy is to do without
    for number, blas in (("1", "Haswell"), ("2", "Prescott")):
        folder = tmp_path_factory.mktemp("machine")
        shutil.copy(place / "bert.onnx", folder)
        environment |= {"PYTHONHASHSEED": number, "OMP_NUM_THREADS": number, "HOME": str(folder)}
        environment |= {"OPENBLAS_CORETYPE": blas, "TZ": f"UTC+{number}"}
        environment |= {"NPY_DISABLE_CPU_FEATURES": vectors[number]}
        assert spawn("check", "bert.onnx", "--update", *options, cwd=folder).code == 0
        assert spawn("fuse", "bert.onnx", "-o", "fused.onnx", *options, cwd=folder).code == 0
        files.append([(folder / name).read_bytes() for name in (LOCK, "fused.onnx")])
    assert files[0] == files[1]


def test_a_proof_that_fails(cli, place, monkeypatch):
    def fail(*arguments):
        raise opfuse.CheckFailed("the fused model does not compute what the original does: 0.5")

    monkeypatch.setattr("opfuse.checking.fuse_and_prove", fail)
    result = cli("check", "bert.onnx")
    assert result.code == 1
    assert failures(result) == [
        "FAILED proof.failed: the fused model does not compute what the original does: 0.5"
    ]
    before = (place / LOCK).read_bytes()
    assert cli("check", "bert.onnx", "--update").code == 1
    assert (place / LOCK).read_bytes() == before
