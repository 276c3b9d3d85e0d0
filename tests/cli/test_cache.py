"""`opfuse build --cache`: the second build is none, and eight at once are one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from models import tiny

pytest.importorskip("tensorrt_rtx")

AT_ONCE = 8


@pytest.fixture
def build(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("OPFUSE_CACHE", raising=False)
    model = tiny.llama(layers=1).write(tmp_path / "llama.onnx")

    def run(name, *options):
        line = ["build", model, "-o", tmp_path / name, "--backend", "tensorrt-rtx", "--no-prove"]
        result = cli(*line, "--json", "--cache", tmp_path / "cache", *options)
        assert result.code == 0, result.err
        return json.loads(result.out), (tmp_path / name).read_bytes()

    run.entries = lambda: list((tmp_path / "cache" / "v1" / "engines").iterdir())
    return run


def noted(report, text):
    return any(text in note for note in report["engine"]["notes"])


def without_the_cache(report):
    report["engine"]["notes"] = [note for note in report["engine"]["notes"] if "cache" not in note]
    for key in ("cache", "path"):
        report["engine"].pop(key)
    report.pop("timings_s")
    report["model"].pop("output")
    return report


def test_the_second_build_is_from_the_cache(build, cli, tmp_path):
    first, engine = build("first.engine")
    second, again = build("second.engine")
    assert (first["engine"]["cache"]["hit"], first["engine"]["cache"]["kept"]) == (False, True)
    assert second["engine"]["cache"] == {"hit": True, "key": first["engine"]["cache"]["key"]}
    assert noted(second, "from the cache")
    assert again == engine
    assert without_the_cache(first) == without_the_cache(second)
    other, _ = build("third.engine", "--maxShapes", "input_ids:2x64")
    assert other["engine"]["cache"]["hit"] is False
    plain, _ = build("fourth.engine", "--no-cache")
    assert plain["engine"]["cache"] == {}


def test_bundles_are_kept_too(build):
    options = ["--backend", "segmented", "--lower", "plugin"]
    first, bundle = build("first.opfuse", *options)
    second, again = build("second.opfuse", *options)
    assert [item["engine"]["cache"]["hit"] for item in (first, second)] == [False, True]
    assert again == bundle
    assert without_the_cache(first) == without_the_cache(second)


def test_a_library_beside_the_engine_is_there_after_a_hit(build, tmp_path):
    build("first.engine", "--no-embed-plugins")
    (library,) = tmp_path.glob("*.so")
    library.unlink()
    second, _ = build("second.engine", "--no-embed-plugins")
    assert second["engine"]["cache"]["hit"]
    assert library.exists()
    assert noted(second, "stands beside it")


def test_a_damaged_entry_is_built_again(build):
    _, engine = build("first.engine")
    (entry,) = build.entries()
    entry.write_bytes(entry.read_bytes()[:-100])
    second, again = build("second.engine")
    assert again == engine
    assert second["engine"]["cache"]["hit"] is False
    assert noted(second, "damaged")
    third, _ = build("third.engine")
    assert third["engine"]["cache"]["hit"]


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--cache", "llama.onnx"], "is no folder"), (["--cache-size", "big"], "no size such as"),
     (["--cache-size", "0"], "above zero")],
)  # fmt: skip
def test_bad_caches(cli, llama, old_output, monkeypatch, tmp_path, options, says):
    monkeypatch.chdir(tmp_path)
    cli("build", llama, "-o", old_output, *options).refused(2, says)


def test_eight_builds_at_once(environment, tmp_path):
    """Four of one model, four of others, one cache: each right, the shared one built once."""
    same = tiny.llama(layers=1).write(tmp_path / "same.onnx")
    others = [
        tiny.llama(layers=1, hidden=64 * n).write(tmp_path / f"{n}.onnx") for n in (2, 3, 4, 5)
    ]
    running = []
    for number, model in enumerate([same, *others, same, same, same]):
        line = ["build", model, "-o", tmp_path / f"{number}.engine", "--no-prove", "--json", "-q"]
        line += ["--backend", "tensorrt-rtx", "--cache", tmp_path / "cache"]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "opfuse", *map(str, line)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    assert len(running) == AT_ONCE
    done = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * AT_ONCE, done
    engines = [json.loads(out)["engine"] for out, _ in done]
    ours = [engines[0], *engines[5:]]
    assert len({engine["sha256"] for engine in ours}) == 1
    assert sorted(engine["cache"]["hit"] for engine in ours) == [False, True, True, True]
    assert len({engine["sha256"] for engine in engines}) == len(others) + 1
    assert len(list((tmp_path / "cache" / "v1" / "engines").iterdir())) == len(others) + 1
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []
