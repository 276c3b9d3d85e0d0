"""The command line's grammar: argv -> parsed arguments. No logic, and nothing heavy to import."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from opfuse.config import BACKENDS, GPUS, LOWERINGS, PRECISIONS, Config
from opfuse.errors import InputError
from opfuse.shape_syntax import parse_shapes

_EPILOG = """\
exit codes:
  0    done
  1    a check failed: numbers differ, or an engine has another precision than asked for
  2    bad input or usage
  3    a needed component is missing: TensorRT, a GPU, the plugin library
  4    TensorRT refused the network or crashed
  70   a bug in opfuse
  124  the time limit has passed
  130  interrupted (Ctrl-C); 143: terminated
"""

_CONVERTS = "say which: --precision fp16 or --precision bf16"
_QUANTISE = (
    "quantisation is part of the model: insert Q/DQ nodes first "
    "(python -m modelopt.onnx.quantization --onnx_path MODEL), then build that file"
)
_REFUSED = {
    "int8": _QUANTISE,
    "fp8": _QUANTISE,
    "best": _CONVERTS,
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputError and which takes no abbreviations."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of leaving the process."""
        raise InputError(message, f"see {self.prog} --help")


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="opfuse",
        description="Fuse the transformer subgraphs of an ONNX model and build a TensorRT engine.",
        epilog=_EPILOG,
    )
    top.add_argument("--version", action="store_true", help="print versions and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _build(commands)
    _fuse(commands)
    _explain(commands)
    _verify(commands)
    _bench(commands)
    _plugins(commands)
    return top


def config_of(args: argparse.Namespace) -> Config:
    """The configuration that the arguments of build, fuse, or explain spell.

    Raises:
        InputError: No model or two, or an option that this release refuses.
    """
    for name, fix in _REFUSED.items():
        if getattr(args, name, False):
            raise InputError(f"--{name} is no option of this release", fix)
    if (args.model is None) == (args.onnx is None):
        given = "twice" if args.model else "nowhere"
        raise InputError(f"the model is named {given}", "name it once: opfuse COMMAND MODEL")
    options = {
        name: value
        for name, value in vars(args).items()
        if name in Config.option_names() and value is not None
    }
    for level in ("min_shapes", "opt_shapes", "max_shapes"):
        options[level] = _joined(level, options.get(level, ()))
    model = args.model or args.onnx
    return Config(model=model, output=getattr(args, "output", None), **options)


def _joined(level: str, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        for name, shape in parse_shapes(text).items():
            if name in shapes:
                raise InputError(f"{level} of input {name!r} are given twice", "give them once")
            shapes[name] = shape
    return shapes


def _build(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "build",
        help="fuse a model and build a TensorRT engine",
        description="Fuse MODEL, prove that its numbers did not change, and build an engine.",
        epilog=_EPILOG,
    )
    _model(command)
    _output(command, "ENGINE", "the engine to write", ("--saveEngine",))
    command.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="which TensorRT builds; auto takes tensorrt where it and a GPU are there, else "
        "tensorrt-rtx, else segmented (default: auto)",
    )
    command.add_argument(
        "--lower",
        choices=LOWERINGS,
        default="auto",
        help="what fusions become: leave the original nodes, native TensorRT layers, or plugin "
        "layers; auto decides for each (default: auto)",
    )
    _shapes(command, _ENGINE_SHAPES)
    _precision(command)
    command.add_argument(
        "--timing-cache",
        "--timingCacheFile",
        type=Path,
        metavar="FILE",
        help="keep TensorRT's kernel timings between builds in FILE (default: none)",
    )
    _library(command, ("--plugins", "--staticPlugins"))
    _embedding(command)
    _proof(command)
    _common(command)


def _fuse(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "fuse",
        help="write the fused ONNX model; needs no GPU and no TensorRT",
        description="Fuse MODEL and write it as ONNX that onnxruntime and TensorRT run.",
        epilog=_EPILOG,
    )
    _model(command)
    _output(command, "FUSED", "the fused .onnx file to write; MODEL itself is allowed")
    _shapes(command, _CHECKED_SHAPES)
    _precision(command)
    _proof(command)
    _common(command)


def _explain(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "explain",
        help="tell what would fuse, which node blocks what nearly did, and what it saves",
        description="Find the fusions of MODEL and write nothing but reports. Every candidate is\n"
        "listed as fused, as nearly fused with the blocking node, the reason and a fix, or as\n"
        "none; and every fusion with what it saves at most.",
        epilog=_EPILOG,
    )
    _model(command)
    _shapes(command, _CHECKED_SHAPES)
    _gpu(command)
    _common(command)


def _verify(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "verify",
        help="run two models, or an engine and a model, on the same inputs and compare the outputs",
        description="Run A and B on the same random inputs and compare every output. One of them "
        "may be an engine or a bundle: it runs on the GPU, step by step and by its CUDA graph.",
        epilog=_EPILOG,
    )
    command.add_argument("a", type=Path, metavar="A", help="the model to compare with (.onnx)")
    command.add_argument(
        "b", type=Path, metavar="B", help="the model (.onnx) or engine to judge; A may be it too"
    )
    _shapes(command, _RUN_SHAPES)
    _library(command, ("--plugins",))
    _tolerance(command)
    _common(command, (".json", ".txt"))


def _bench(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "bench",
        help="time an engine or bundle on this GPU",
        description="Time ENGINE on random inputs: latency with and without CUDA graphs, "
        "throughput, device memory, and the time to the first result.",
        epilog=_EPILOG,
    )
    command.add_argument("engine", type=Path, metavar="ENGINE", help="the engine or bundle")
    command.add_argument(
        "--vs",
        action="append",
        default=[],
        type=Path,
        metavar="OTHER",
        help="an engine or bundle to time beside it, or an ONNX model, which TensorRT alone "
        "builds first; may be given several times",
    )
    _shapes(command, _RUN_SHAPES)
    command.add_argument(
        "--iterations", type=int, default=100, metavar="N", help="timed runs (default: 100)"
    )
    command.add_argument(
        "--warm-up", type=int, default=20, metavar="N", help="runs before those (default: 20)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the inputs (default: 0)"
    )
    _library(command, ("--plugins",))
    _common(command, (".json",))


def _plugins(commands: argparse._SubParsersAction[Parser]) -> None:
    command = commands.add_parser(
        "plugins",
        help="list the plugins of the library, their versions, and its GPU architectures",
        description="Describe the plugin library; needs no GPU and no TensorRT.",
        epilog=_EPILOG,
    )
    _library(command, ("--plugins", "--library"))
    _output_options(command)


def _model(command: Parser) -> None:
    command.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="the ONNX file")
    command.add_argument(
        "--onnx", type=Path, metavar="MODEL", help="the same, as trtexec spells it"
    )


def _output(command: Parser, name: str, text: str, aliases: tuple[str, ...] = ()) -> None:
    command.add_argument(
        "-o", "--output", *aliases, required=True, type=Path, metavar=name, help=text
    )


_ENGINE_SHAPES = {
    "min": "smallest shapes that the engine takes",
    "opt": "shapes that the engine is tuned for, and that savings are told for",
    "max": "largest shapes that the engine takes",
}
_CHECKED_SHAPES = {
    "min": "smallest shapes that an engine of the model will take; checked, and else unused",
    "opt": "shapes that savings are told for, and that the proof runs the model at where it takes "
    "no others",
    "max": "largest shapes that an engine of the model will take; checked, and else unused",
}
_RUN_SHAPES = {"opt": "shapes to run at"}


def _shapes(command: Parser, texts: Mapping[str, str]) -> None:
    group = command.add_argument_group(
        "shapes of dynamic inputs",
        "SHAPES is name:1x3x224x224,other:8x128 or name:[1,3,224,224]; quote a name with a\n"
        "colon in it ('a:0':1x2). May be given several times.",
    )
    for level, text in texts.items():
        group.add_argument(
            f"--{level}Shapes",
            f"--{level}-shapes",
            f"--trt-{level}-shapes",
            dest=f"{level}_shapes",
            action="append",
            metavar="SHAPES",
            help=f"{text} (default: chosen from the names of the symbolic dimensions)",
        )


def _precision(command: Parser) -> None:
    group = command.add_argument_group(
        "precision",
        "TensorRT computes in the types of the graph. A conversion puts products, attentions, and\n"
        "what lies between into fp16 or bf16; norms, softmax, and sums compute in fp32 inside\n"
        "of fused operators, and stay fp32 elsewhere.",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="keep",
        help="keep every tensor in its type, or convert to fp16 or bf16 (default: keep)",
    )
    for name in PRECISIONS[1:]:
        group.add_argument(
            f"--{name}",
            dest="precision",
            action="store_const",
            const=name,
            help=f"the same as --precision {name}",
        )
    group.add_argument(
        "--io-precision",
        choices=PRECISIONS,
        default="keep",
        help="the type of floating-point inputs and outputs; keep leaves theirs (default: keep)",
    )
    group.add_argument(
        "--calibrate",
        action="append",
        type=Path,
        metavar="DATA.npz",
        help="inputs on which activations are measured, an array for each input of the model, or "
        "several stacked in front; may be given several times (default: random inputs)",
    )


def _gpu(command: Parser) -> None:
    command.add_argument(
        "--gpu",
        choices=GPUS,
        default="H100",
        help="tell savings for this GPU, at the --optShapes (default: H100)",
    )


def _library(command: Parser, flags: tuple[str, ...]) -> None:
    command.add_argument(
        *flags,
        dest="plugin_library",
        type=Path,
        metavar="LIBRARY",
        help="the plugin library (default: the one in the package, or $OPFUSE_PLUGINS)",
    )


def _embedding(command: Parser) -> None:
    command.add_argument(
        "--no-embed-plugins",
        dest="embed_plugins",
        action="store_false",
        help="leave the plugin library out of the engine; whoever runs it loads the library first",
    )


def _proof(command: Parser) -> None:
    command.add_argument(
        "--no-prove",
        dest="prove",
        action="store_false",
        help="do not run the fusions and the whole model against the original",
    )
    _tolerance(command)


def _tolerance(command: Parser) -> None:
    command.add_argument(
        "--rtol",
        type=float,
        metavar="ERROR",
        help="largest relative error that passes"
        " (default: 1e-4 for fp32, 2e-2 for fp16, 8e-2 for bf16)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random inputs (default: 0)"
    )


def _common(command: Parser, formats: tuple[str, ...] = (".json", ".txt", ".html")) -> None:
    for name in _REFUSED:
        command.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    command.add_argument("--stronglyTyped", action="store_true", help=argparse.SUPPRESS)
    command.add_argument(
        "--report",
        dest="reports",
        action="append",
        type=Path,
        metavar="FILE",
        help=f"write the report to FILE: {', '.join(formats)}; may be given several times",
    )
    command.add_argument(
        "--time-limit",
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="stop after so many seconds of wall time, with exit code 124 (default: none)",
    )
    _output_options(command)


def _output_options(command: Parser) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="show each step of a stage")
    group.add_argument("-q", "--quiet", action="store_true", help="print errors and --json only")
    group.add_argument(
        "--no-color", action="store_true", help="no colours; NO_COLOR=1 does the same"
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks with errors")
