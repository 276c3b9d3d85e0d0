"""The grammar of the command line: what it takes, what it refuses, and how fast it starts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from models.handmade import graph_model, node, write
from opfuse.arguments import config_of, parser
from opfuse.errors import InputError
from opfuse.shape_syntax import parse_shapes


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("x:1x3,y:8", {"x": (1, 3), "y": (8,)}),
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("x:[1, 3] y:[8]", {"x": (1, 3), "y": (8,)}),
        ("'a:0':1x2,b:3", {"a:0": (1, 2), "b": (3,)}),
        ('"a,b":1', {"a,b": (1,)}),
        ("a:0:1x2", {"a:0": (1, 2)}),
        ("/model/x.1:2x2", {"/model/x.1": (2, 2)}),
        ("x:scalar,y:[]", {"x": (), "y": ()}),
    ],
)
def test_shapes(text, shapes):
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:", "x:1x", "x:axb", "x:1X3", "x:-1x3", "x:1x0", "x:[1,3", "x:1,3,y", "x:1,x:2",
     ":1", "x:1x2147483648", "x:1x" + "9" * 5000],
)  # fmt: skip
def test_bad_shapes(cli, llama, old_output, text):
    result = cli("fuse", llama, "-o", old_output, "--minShapes", text)
    result.refused(2, "shapes")


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ("no_such_input:1x8", "no_such_input"),
        ("input_ids:1x8x8", "input_ids"),
        ("input_ids:2x8,attention_mask:2x9", "attention_mask"),
    ],
    ids=["not there", "rank", "contradiction"],
)
def test_shapes_that_the_model_does_not_have(cli, llama, old_output, shapes, says):
    result = cli("fuse", llama, "-o", old_output, "--optShapes", shapes)
    result.refused(2, says, "input_ids", "position_ids")


def test_shapes_of_a_model_without_dynamic_dimensions(cli, tmp_path, old_output):
    path = write(tmp_path / "fixed.onnx", graph_model([node("Relu", "x", "y", "r")]))
    cli("fuse", path, "-o", old_output, "--optShapes", "x:5").refused(2, "'x'", "4")


@pytest.mark.parametrize(
    "flags",
    [
        ["--minShapes=x:1", "--optShapes=x:2", "--maxShapes=x:3"],
        ["--min-shapes", "x:1", "--opt-shapes", "x:2", "--max-shapes", "x:3"],
        ["--trt-min-shapes", "x:[1]", "--trt-opt-shapes", "x:[2]", "--trt-max-shapes", "x:[3]"],
    ],
)
def test_spellings_of_trtexec_and_polygraphy(flags):
    line = ["build", "--onnx=m.onnx", "--saveEngine=m.engine", "--timingCacheFile=t", *flags]
    config = config_of(parser().parse_args([*line, "--staticPlugins=p.so", "--stronglyTyped"]))
    assert (str(config.model), str(config.output)) == ("m.onnx", "m.engine")
    assert (str(config.timing_cache), str(config.plugin_library)) == ("t", "p.so")
    assert [config.min_shapes, config.opt_shapes, config.max_shapes] == [
        {"x": (1,)}, {"x": (2,)}, {"x": (3,)},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "no command"),
        (["benchmark", "m"], "'benchmark'"),
        (["bench", "m"], "no engine m"),
        (["bench", "m", "--iterations", "0"], "above zero"),
        (["fuse", "m.onnx"], "--output"),
        (["fuse", "-o", "f.onnx"], "nowhere"),
        (["fuse", "m.onnx", "--onnx", "n.onnx", "-o", "f"], "twice"),
        (["build", "m.onnx", "-o", "e", "--backend", "cpu"], "'cpu'"),
        (["build", "m.onnx", "-o", "e", "--back", "tensorrt"], "--back"),
        (["build", "m.onnx", "-o", "e", "--best"], "--precision fp16 or"),
        (["build", "m.onnx", "-o", "e", "--precision", "fp8"], "'fp8'"),
        (["build", "m.onnx", "-o", "e", "--io-precision", "fp16"], "no precision to convert to"),
        (["build", "m.onnx", "-o", "e", "--calibrate", "x.npz"], "no precision to convert to"),
        (["build", "m.onnx", "-o", "e", "--fp16", "--io-precision", "bf16"], "another type"),
        (["build", "m.onnx", "-o", "e", "--int8"], "Q/DQ"),
        (["build", "m.onnx", "-o", "e", "--time-limit", "-1"], "above zero"),
        (["build", "m.onnx", "-o", "e", "--rtol", "nan"], "above zero"),
        (["build", "m.onnx", "-o", "e", "--time-limit", "inf"], "finite"),
        (["build", "m.onnx", "-o", "e", "--time-limit", "nan"], "finite"),
        (["build", "m.onnx", "-o", "e", "--rtol", "inf"], "finite"),
        (["build", "m.onnx", "-o", "e", "--seed", "x"], "--seed"),
        (["build", "m.onnx", "-o", "e", "--seed", "-1"], "seed -1 is negative"),
        (["verify", "m.onnx", "m.onnx", "--seed", "-1"], "seed -1 is negative"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(cli, line, says):
    cli(*line).refused(2, says)


def test_shapes_of_one_input_given_by_two_options(cli, llama, old_output):
    once = ["--optShapes", "input_ids:1x8"]
    result = cli("fuse", llama, "-o", old_output, *once, *once)
    result.refused(2, "'input_ids'", "twice")


def test_shapes_of_two_inputs_given_by_two_options():
    line = ["fuse", "m", "-o", "f", "--optShapes", "a:1", "--optShapes=b:2"]
    assert config_of(parser().parse_args(line)).opt_shapes == {"a": (1,), "b": (2,)}


def test_refused_options_raise_from_the_library_too():
    args = parser().parse_args(["fuse", "m", "-o", "f", "--best"])
    with pytest.raises(InputError, match="--best"):
        config_of(args)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ([], "keep"),
        (["--fp16"], "fp16"),
        (["--bf16"], "bf16"),
        (["--precision", "bf16"], "bf16"),
        (["--precision=keep"], "keep"),
    ],
    ids=str,
)
def test_spellings_of_a_precision(options, precision):
    for command in ("build", "fuse"):
        config = config_of(parser().parse_args([command, "m", "-o", "f", *options]))
        assert config.precision == precision


def test_options_of_a_conversion():
    line = "fuse m -o f --fp16 --io-precision fp16 --calibrate a.npz --calibrate b.npz"
    config = config_of(parser().parse_args(line.split()))
    assert config.io_precision == "fp16"
    assert [str(path) for path in config.calibrate] == ["a.npz", "b.npz"]


@pytest.mark.parametrize("command", ["", "build", "fuse", "explain", "verify", "plugins"])
def test_help(cli, command):
    result = cli(*command.split(), "--help")
    assert result.code == 0
    assert "exit codes:" in result.out


@pytest.mark.parametrize(
    ("command", "absent"),
    [("verify", "--minShapes"), ("verify", ".html"), ("fuse", "--backend"), ("explain", "--rtol")],
)
def test_help_offers_nothing_without_an_effect(cli, command, absent):
    assert absent not in cli(command, "--help").out


def test_version(cli):
    result = cli("--version")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == [
        "opfuse", "onnx", "onnx-graphsurgeon", "onnxruntime", "tensorrt", "tensorrt-rtx", "plugin",
    ]  # fmt: skip


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages that a command loads."""
    program = (
        "import sys; from opfuse.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "import json; print('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    path = [p for p in sys.path if p]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy():
    heavy = {"onnx", "numpy", "rich", "onnxruntime", "tensorrt", "tensorrt_rtx", "google"}
    assert imported_by("--help") & heavy == set()


def test_fusing_without_proof_imports_no_engine(llama, tmp_path):
    heavy = {"onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "jinja2"}
    loaded = imported_by("fuse", str(llama), "-o", str(tmp_path / "f.onnx"), "--no-prove", "-q")
    assert (tmp_path / "f.onnx").exists()
    assert loaded & heavy == set()
