"""opfuse.toml: what wins, what is refused and on which line; and --dry-run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models import tiny
from opfuse.arguments import config_of, read
from opfuse.stages import tune


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(here, text, *arguments, name="opfuse.toml"):
    (here / name).write_text(text)
    return config_of(read(arguments))


EVERYTHING = """
time-limit = 60  # for every command
precision = "fp16"
report = "all.json"
[fuse]
precision = "bf16"
[build]
model = "model.onnx"
output = "out.engine"
backend = "segmented"
io_precision = "fp16"
calibrate = ["a.npz", "b.npz"]
lower = "leave"
prove = false
embed-plugins = false
timing-cache = "t"
rtol = 1
seed = 3
min-shapes = "x:1x4,'a:0':2"
[build.max-shapes]
x = [2, 8]
'a:0' = [2]
"""


def test_every_kind_of_option(here):
    found = config(here, EVERYTHING, "build")
    assert (found.time_limit, found.precision, found.io_precision) == (60.0, "fp16", "fp16")
    assert (found.model, found.output) == (Path("model.onnx"), Path("out.engine"))
    assert found.reports == (Path("all.json"),)
    assert found.calibrate == (Path("a.npz"), Path("b.npz"))
    assert (found.backend, found.lower, found.prove) == ("segmented", "leave", False)
    assert (found.embed_plugins, found.timing_cache) == (False, Path("t"))
    assert (found.rtol, found.seed) == (1.0, 3)
    assert found.min_shapes == {"x": (1, 4), "a:0": (2,)}
    assert found.max_shapes == {"x": (2, 8), "a:0": (2,)}


def test_the_table_of_a_command_is_for_that_command(here):
    found = config(here, EVERYTHING, "fuse", "m.onnx", "-o", "f.onnx")
    assert (found.precision, found.time_limit) == ("bf16", 60.0)
    assert (found.backend, found.seed, found.prove) == ("auto", 0, True)


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--time-limit", "5"], "time_limit", 5.0),
        (["--precision", "keep", "--io-precision", "keep", "--calibrate=c.npz"], "precision", ""),
        (["--bf16", "--io-precision", "keep"], "precision", "bf16"),
        (["other.onnx"], "model", Path("other.onnx")),
        (["--onnx", "other.onnx"], "model", Path("other.onnx")),
        (["--saveEngine", "other"], "output", Path("other")),
        (["--minShapes", "y:3"], "min_shapes", {"y": (3,)}),
        (["--report", "1.json", "--report", "2.txt"], "reports", (Path("1.json"), Path("2.txt"))),
        (["--seed", "0"], "seed", 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_typed_wins(cli, here, typed, name, value):
    if value == "":  # and is then checked with what the file says
        (here / "opfuse.toml").write_text(EVERYTHING)
        cli("build", *typed).refused(2, "no precision to convert to")
    else:
        assert getattr(config(here, EVERYTHING, "build", *typed), name) == value


def test_a_named_file_is_taken_and_its_paths_are_its_own(here):
    (here / "ci").mkdir()
    (here / "opfuse.toml").write_text("seed = 1")
    found = config(
        here, '[build]\noutput = "x"\nplugins = "p.so"', "build", "m", "--config", "ci/a.toml",
        name="ci/a.toml",
    )  # fmt: skip
    assert (found.output, found.plugin_library) == (Path("ci/x"), Path("ci/p.so"))
    assert found.seed == 0


def test_a_byte_order_mark(here):
    assert config(here, "\ufeffseed = 1", "fuse", "m", "-o", "f").seed == 1


def test_no_config(here):
    assert config(here, "seed = 1", "fuse", "m", "-o", "f", "--no-config").seed == 0


def test_no_option_of_the_file_goes_unsaid(cli, here, llama):
    (here / "opfuse.toml").write_text("seed = 1\n[fuse]\nprove = false")
    result = cli("fuse", llama, "-o", "f.onnx")
    assert "opfuse: opfuse.toml gives seed, prove\n" in result.err
    assert "opfuse.toml" not in cli("fuse", llama, "-o", "f.onnx", "-q").err


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("x = ", 1, "not TOML"),
        ("a = 1\n\nb = [", 3, "not TOML"),
        ('a = "\n', 1, "not TOML"),
        ("a = 1\na = 2", 2, "not TOML"),
        ("\nback-end = 'auto'", 2, "did you mean backend?"),
        ("[fuse]\n\nprecison = 'fp16'", 3, "did you mean precision?"),
        ("[fuse]\nbackend = 'auto'", 2, "no option of opfuse fuse"),
        ("[biuld]\nseed = 1", 1, "[build] is the table of a command"),
        ("build = 3", 1, "[build] is the table of a command"),
        ("[[build]]\nseed = 1", 1, "[build] is the table of a command"),
        ("output = 'x'", 1, "put it into the table of a command"),
        ("debug = true", 1, "debug is no option"),
        ("[build]\nint8 = true", 2, "int8 is no option"),
        ("[build]\nbackend = 'cpu'", 2, "one of auto, tensorrt"),
        ("[build]\nbackend = 1", 2, "one of auto, tensorrt"),
        ("[build]\nprove = 'no'", 2, "true or false"),
        ("[build]\nprove = 0", 2, "true or false"),
        ("seed = 1.5", 1, "a whole number"),
        ("seed = true", 1, "a whole number"),
        ("time-limit = '3'", 1, "a number"),
        ("time_limit = 1\ntime-limit = 2", 2, "given twice"),
        ("report = ['a.json', 3]", 1, "path of a file"),
        ("report = ''", 1, "path of a file"),
        ('[build]\ntiming-cache = "a\\u0000b"', 2, "path of a file"),
        ("[completion]\nshell = 'bash'", 1, "completion is no option"),
        ("[build]\ncache-size = 'big'", 2, "no size such as 500M"),
        ("[build]\ntiming-cache = ['a']", 2, "path of a file"),
        ("[build]\nseed = 1\nmax-shapes = { a = [0] }", 3, "sizes of 1 or more"),
        ("[build]\nmax-shapes = { a = 'x' }", 2, "sizes of 1 or more"),
        ("[build]\nmax-shapes = [1]", 2, "a table such as"),
        ("[build]\n[build.min-shapes]\nx = [true]", 2, "sizes of 1 or more"),
        ("build.min-shapes.x = [0]", 1, "sizes of 1 or more"),
        ("[plugins]\nplugins = 'p.so'\n[build]\nplugins = 'p.so'", 4, "--config opfuse.toml"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(cli, here, llama, text, line, says):
    (here / "opfuse.toml").write_text(text)
    result = cli("build", llama, "-o", "f.onnx")
    result.refused(2, f"opfuse.toml:{line}: ", says)
    assert "opfuse: load" not in result.err


def test_tables_of_other_commands_are_checked_too(cli, here, llama):
    (here / "opfuse.toml").write_text("[verify]\nrtol = 'small'")
    cli("fuse", llama, "-o", "f.onnx").refused(2, "opfuse.toml:2", "a number")


def test_files_that_are_none(cli, here, llama):
    line = ["fuse", llama, "-o", "f.onnx", "--config"]
    cli(*line, "none.toml").refused(2, "none.toml", "No such file")
    cli(*line, here).refused(2, str(here), "not a regular file")
    (here / "opfuse.toml").symlink_to("nowhere")
    cli(*line[:-1]).refused(2, "opfuse.toml", "No such file")
    (here / "bytes.toml").write_bytes(b"# \n#\xff\n")
    cli(*line, "bytes.toml").refused(2, "bytes.toml:2", "not UTF-8")
    (here / "large.toml").write_text("#" * (1 << 20) + "\n")
    cli(*line, "large.toml").refused(2, "large.toml", "1048577 bytes")
    (here / "deep.toml").write_text("a = " + "[" * 100_000)
    cli(*line, "deep.toml").refused(2, "deep.toml")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_dry_run_of_fuse_writes_nothing(cli, here, llama):
    (here / "old.onnx").write_bytes(b"old")
    before = files(here)
    options = ["-o", "old.onnx", "--report", "r.json", "--json"]
    result = cli("fuse", llama, *options, "--dry-run")
    assert result.code == 0, result.err
    assert files(here) == before
    dry = json.loads(result.out)
    assert dry.pop("dry_run") == {"would_write": ["r.json", "old.onnx"]}
    real = json.loads(cli("fuse", llama, *options).out)
    for report in (dry, real):
        report.pop("timings_s")
    assert dry == real
    assert "would write old.onnx" in cli("fuse", llama, "-o", "old.onnx", "--dry-run").out


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "segmented"])
def test_a_dry_run_of_build_writes_nothing(cli, here, backend):
    pytest.importorskip("tensorrt_rtx")
    model = tiny.llama(layers=1).write(here / "llama.onnx")
    before = files(here)
    line = ["build", model, "-o", "x.engine", "--backend", backend, "--json", "--no-prove"]
    result = cli(*line, "--dry-run", "--no-embed-plugins", "--timing-cache", "t")
    assert result.code == 0, result.err
    assert files(here) == before
    dry, real = json.loads(result.out), json.loads(cli(*line).out)
    assert dry["lowering"] == real["lowering"]
    assert dry["engine"]["plugin_layers"] == real["engine"]["plugin_layers"]
    assert dry["engine"]["backend"] == backend
    assert (dry["engine"]["bytes"], dry["engine"]["path"]) == (0, "")


def test_a_dry_run_measures_nothing(cli, here, llama, monkeypatch):
    """What tuning finds goes into the lock, which is a file as well."""
    pytest.importorskip("tensorrt_rtx")
    genuine, asked = tune.decide, []

    def decide(model, folder, library, config, progress):
        asked.append(config.tune)
        return genuine(model, folder, library, replace(config, tune=False), progress)

    monkeypatch.setattr(tune, "decide", decide)
    line = ["build", llama, "-o", "x.engine", "--backend", "tensorrt-rtx", "--no-prove", "--tune"]
    result = cli(*line, "--dry-run", "--json")
    assert json.loads(result.out)["dry_run"]["would_write"] == ["x.engine", "opfuse.lock"]
    assert asked in ([False], [])  # without the plugin library there is nothing to ask


def test_a_dry_run_makes_the_checks(cli, here, llama):
    line = ["fuse", llama, "--dry-run", "-o"]
    cli(*line, "none/f.onnx").refused(2, "does not exist")
    cli(*line, "f.onnx", "--report", "r.pdf").refused(2, "'.pdf'")
    cli(*line, "f.onnx", "--optShapes", "no:1").refused(2, "'no'")
