"""Groups of options that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from opfuse.arguments.parser import Parser
from opfuse.config import GPUS, PRECISIONS
from opfuse.lockfile import NAME

_CONVERTS = "say which: --precision fp16 or --precision bf16"
_QUANTISE = (
    "quantisation is part of the model: insert Q/DQ nodes first "
    "(python -m modelopt.onnx.quantization --onnx_path MODEL), then build that file"
)
REFUSED = {
    "int8": _QUANTISE,
    "fp8": _QUANTISE,
    "best": _CONVERTS,
}


def model(command: Parser) -> None:
    """The ONNX file, by place or as --onnx."""
    command.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="the ONNX file")
    command.add_argument(
        "--onnx", type=Path, metavar="MODEL", help="the same, as trtexec spells it"
    )


def engine(command: Parser) -> None:
    """The built engine or bundle, by place."""
    command.add_argument("engine", type=Path, metavar="ENGINE", help="the engine or bundle")


def together(command: Parser, text: str) -> None:
    """How many ranks, and whether only to look."""
    group = command.add_argument_group(
        "several GPUs",
        "Started by hand, the command starts itself once for each rank; started by torchrun,\n"
        "mpirun, or srun it is one.",
    )
    group.add_argument("--tp", type=int, metavar="N", help=f"{text} (default: one GPU)")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="check that the ranks belong together, and tell what would run, without a GPU",
    )


def output(command: Parser, name: str, text: str, aliases: tuple[str, ...] = ()) -> None:
    """Where the result goes."""
    command.add_argument(
        "-o", "--output", *aliases, type=Path, metavar=name, help=f"{text} (has to be named)"
    )


ENGINE_SHAPES = {
    "min": "smallest shapes that the engine takes",
    "opt": "shapes that the engine is tuned for, and that savings are told for",
    "max": "largest shapes that the engine takes",
}
CHECKED_SHAPES = {
    "min": "smallest shapes that an engine of the model will take; checked, and else unused",
    "opt": "shapes that savings are told for, and that the proof runs the model at where it takes "
    "no others",
    "max": "largest shapes that an engine of the model will take; checked, and else unused",
}
RUN_SHAPES = {"opt": "shapes to run at"}


def shapes(command: Parser, texts: Mapping[str, str]) -> None:
    """One option for each of the levels that `texts` describes."""
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


def precision(command: Parser) -> None:
    """The type that the model computes in, and that its inputs and outputs have."""
    group = command.add_argument_group(
        "precision",
        "TensorRT computes in the types of the graph. A conversion puts products, attentions, and\n"
        "what lies between into fp16 or bf16; norms, softmax, and sums compute in fp32 inside\n"
        "of fused operators; elsewhere what may overflow stays fp32.",
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


def tuning(command: Parser) -> None:
    """Whether plugins are weighed here, and where the verdicts are kept."""
    group = command.add_argument_group(
        "tuning",
        "With --lower auto each distinct group of plugins is weighed against what TensorRT makes\n"
        "of the same nodes: by the verdicts in the lock, else by the table that opfuse ships.",
    )
    group.add_argument(
        "--tune",
        action="store_true",
        help="time what the lock has no verdict on, on this GPU, and add the verdicts to the lock",
    )
    group.add_argument(
        "--lock",
        type=Path,
        metavar="LOCK",
        default=Path(NAME),
        help=f"the lock with the verdicts (default: {NAME})",
    )


def lock(command: Parser) -> None:
    """The lock, and what its limits are held against."""
    group = command.add_argument_group("lock")
    group.add_argument(
        "--lock",
        type=Path,
        metavar="LOCK",
        help="the lock to hold MODEL against (default: opfuse.lock)",
    )
    group.add_argument(
        "--update",
        action="store_true",
        help="write the lock anew and print what changes; sections of others stay",
    )
    group.add_argument(
        "--bench",
        type=Path,
        metavar="REPORT",
        help="a report of opfuse bench (.json), for the limit of the time (default: --engine is "
        "timed where there is a GPU)",
    )
    group.add_argument(
        "--engine", type=Path, metavar="ENGINE", help="the built engine, for the limit of its size"
    )
    group.add_argument(
        "--annotate",
        action="store_true",
        help="print what failed as annotations of a GitHub runner, on stderr",
    )


def gpu(command: Parser) -> None:
    """The GPU that savings are told for."""
    command.add_argument(
        "--gpu",
        choices=GPUS,
        default="H100",
        help="tell savings for this GPU, at the --optShapes (default: H100)",
    )


def cache(command: Parser) -> None:
    """Where built engines are kept."""
    group = command.add_argument_group(
        "cache",
        "An engine is taken from the cache where the same bytes would go to the same TensorRT on\n"
        "the same GPU; the model is fused and proved all the same.",
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep engines and kernel timings in DIR (default: $OPFUSE_CACHE, or none)",
    )
    group.add_argument(
        "--no-cache", dest="use_cache", action="store_false", help="build, whatever is set"
    )
    group.add_argument(
        "--cache-size",
        type=_bytes,
        default=10 << 30,
        metavar="SIZE",
        help="what the cache may take, as 500M or 20G; the longest unused go first (default: 10G)",
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 20G")
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")


def library(command: Parser, flags: tuple[str, ...]) -> None:
    """The plugin library, under the given flags."""
    command.add_argument(
        *flags,
        dest="plugin_library",
        type=Path,
        metavar="LIBRARY",
        help="the plugin library (default: the one in the package, or $OPFUSE_PLUGINS)",
    )


def embedding(command: Parser) -> None:
    """Whether the engine holds the plugin library."""
    command.add_argument(
        "--no-embed-plugins",
        dest="embed_plugins",
        action="store_false",
        help="leave the plugin library out of the engine; whoever runs it loads the library first",
    )


def proof(command: Parser) -> None:
    """Whether and how closely the fused model is compared with the original."""
    command.add_argument(
        "--no-prove",
        dest="prove",
        action="store_false",
        help="do not run the fusions and the whole model against the original",
    )
    tolerance(command)


def tolerance(command: Parser) -> None:
    """The error that passes, and the seed of the inputs."""
    command.add_argument(
        "--rtol",
        type=float,
        metavar="ERROR",
        help="largest relative error that passes"
        " (default: 1e-4 for fp32, 2e-2 for fp16, 8e-2 for bf16)",
    )
    seed(command)


def seed(command: Parser) -> None:
    """The seed of the inputs."""
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random inputs (default: 0)"
    )


FORMATS = (".json", ".txt", ".html", ".md", ".sarif", ".xml")


def common(command: Parser, formats: tuple[str, ...] = FORMATS) -> None:
    """Reports in the given formats, if any, the time limit, and what goes to the terminal."""
    for name in REFUSED:
        command.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    command.add_argument("--stronglyTyped", action="store_true", help=argparse.SUPPRESS)
    if formats:
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
    config_file(command)
    output_options(command)


def config_file(command: Parser) -> None:
    """Where options come from that the command line does not name."""
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take options from FILE (default: opfuse.toml in the working directory, if there)",
    )
    command.add_argument("--no-config", action="store_true", help="take none from opfuse.toml")


def dry_run(command: Parser) -> None:
    """Whether to leave out what writes."""
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="make all checks, tell what would be fused and written, and write nothing",
    )


def output_options(command: Parser) -> None:
    """What goes to the terminal."""
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="show each step of a stage")
    quiet = "print --json, errors, and the report of what failed only"
    group.add_argument("-q", "--quiet", action="store_true", help=quiet)
    group.add_argument(
        "--no-color", action="store_true", help="no colours; NO_COLOR=1 does the same"
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks with errors")
