"""One function for each command: its help and its options."""

from __future__ import annotations

import argparse
from pathlib import Path

from opfuse.arguments.options import (
    CHECKED_SHAPES,
    ENGINE_SHAPES,
    RUN_SHAPES,
    cache,
    common,
    config_file,
    dry_run,
    embedding,
    engine,
    gpu,
    library,
    lock,
    model,
    output,
    output_options,
    precision,
    proof,
    seed,
    shapes,
    together,
    tolerance,
    tuning,
)
from opfuse.arguments.parser import EPILOG, Parser
from opfuse.config import BACKENDS, LOWERINGS

SHELLS = ("bash", "zsh", "fish", "tcsh")


def build(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse build`."""
    command = commands.add_parser(
        "build",
        help="fuse a model and build a TensorRT engine",
        description="Fuse MODEL, prove that its numbers did not change, and build an engine.",
        epilog=EPILOG,
    )
    model(command)
    output(command, "ENGINE", "the engine to write", ("--saveEngine",))
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
    shapes(command, ENGINE_SHAPES)
    precision(command)
    tuning(command)
    command.add_argument(
        "--timing-cache",
        "--timingCacheFile",
        type=Path,
        metavar="FILE",
        help="keep TensorRT's kernel timings between builds in FILE (default: none)",
    )
    cache(command)
    library(command, ("--plugins", "--staticPlugins"))
    embedding(command)
    proof(command)
    dry_run(command)
    common(command)


def fuse(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse fuse`."""
    command = commands.add_parser(
        "fuse",
        help="write the fused ONNX model; needs no GPU and no TensorRT",
        description="Fuse MODEL and write it as ONNX that onnxruntime and TensorRT run.",
        epilog=EPILOG,
    )
    model(command)
    output(command, "FUSED", "the fused .onnx file to write; MODEL itself is allowed")
    shapes(command, CHECKED_SHAPES)
    precision(command)
    proof(command)
    dry_run(command)
    common(command)


def explain(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse explain`."""
    command = commands.add_parser(
        "explain",
        help="tell what would fuse, which node blocks what nearly did, and what it saves",
        description="Find the fusions of MODEL and write nothing but reports. Every candidate is\n"
        "listed as fused, as nearly fused with the blocking node, the reason and a fix, or as\n"
        "none; and every fusion with what it saves at most.",
        epilog=EPILOG,
    )
    model(command)
    shapes(command, CHECKED_SHAPES)
    gpu(command)
    common(command)


def verify(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse verify`."""
    command = commands.add_parser(
        "verify",
        help="run two models, or an engine and a model, on the same inputs and compare the outputs",
        description="Run A and B on the same random inputs and compare every output. One of them "
        "may be an engine or a bundle: it runs on the GPU, step by step and by its CUDA graph.",
        epilog=EPILOG,
    )
    command.add_argument("a", type=Path, metavar="A", help="the model to compare with (.onnx)")
    command.add_argument(
        "b", type=Path, metavar="B", help="the model (.onnx) or engine to judge; A may be it too"
    )
    together(command, "A is a folder of opfuse shard with a bundle for each of N ranks")
    command.add_argument(
        "--layers",
        action="store_true",
        help="compare what every step of a bundle writes, and name the first that differs",
    )
    command.add_argument(
        "--bisect",
        action="store_true",
        help="where an engine differs, build the model again with outputs in its middle until the "
        "first operator that differs is found",
    )
    shapes(command, RUN_SHAPES)
    library(command, ("--plugins",))
    tolerance(command)
    common(command, (".json", ".txt"))


def check(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse check`."""
    command = commands.add_parser(
        "check",
        help="hold a model against its opfuse.lock: fusions, numbers, precision, versions",
        description="Fuse and prove MODEL and hold it against the lock, which is committed with "
        "it.\nOptions that are not given are those of the lock.",
        epilog=EPILOG,
    )
    model(command)
    lock(command)
    shapes(command, CHECKED_SHAPES)
    precision(command)
    library(command, ("--plugins",))
    proof(command)
    common(command)
    command.set_defaults(precision=None, io_precision=None, prove=None, seed=None)


def bench(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse bench`."""
    command = commands.add_parser(
        "bench",
        help="time an engine or bundle on this GPU",
        description="Time ENGINE on random inputs: latency with and without CUDA graphs, "
        "throughput, device memory, and the time to the first result.",
        epilog=EPILOG,
    )
    engine(command)
    together(command, "ENGINE is a folder of opfuse shard with a bundle for each of N ranks")
    command.add_argument(
        "--vs",
        action="append",
        default=[],
        type=Path,
        metavar="OTHER",
        help="an engine or bundle to time beside it, an ONNX model, which TensorRT alone "
        "builds first, or FILE.py:NAME, a function that returns a torch module for the same "
        "inputs; may be given several times",
    )
    shapes(command, RUN_SHAPES)
    command.add_argument(
        "--iterations", type=int, default=100, metavar="N", help="timed runs (default: 100)"
    )
    command.add_argument(
        "--warm-up", type=int, default=20, metavar="N", help="runs before those (default: 20)"
    )
    seed(command)
    library(command, ("--plugins",))
    common(command, (".json", ".svg"))


def package(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse package`."""
    command = commands.add_parser(
        "package",
        help="write an engine or bundle into a Triton model repository",
        description="Write ENGINE as a model of Triton: its configuration, a warm-up, the plugin\n"
        "library where it needs one, and the command that serves it. ENGINE may be a folder of\n"
        "opfuse shard with an engine for each rank.",
        epilog=EPILOG,
    )
    engine(command)
    command.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="the model repository, in which the folder of the model is written (has to be named)",
    )
    command.add_argument("--name", help="the name of the model (default: that of the file)")
    command.add_argument(
        "--build-report",
        type=Path,
        metavar="R.json",
        help="the report of the build; without a GPU nothing else knows the inputs of an engine "
        "(default: the one beside ENGINE, if it is that of ENGINE)",
    )
    command.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="the largest batch that Triton may join requests to; 0 for none (default: that of "
        "the engine where the first dimension of all inputs and outputs is called a batch, else 0)",
    )
    library(command, ("--plugins",))
    config_file(command)
    output_options(command)


def shard(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse shard`."""
    command = commands.add_parser(
        "shard",
        help="cut a model for several GPUs: one ONNX file for each, and a plan",
        description="Fuse MODEL and cut it for N ranks that each hold a share of the weights\n"
        "(tensor parallel): attention by heads, linear layers by columns and rows. Proves\n"
        "on the CPU that all ranks together compute what MODEL does.",
        epilog=EPILOG,
    )
    model(command)
    output(command, "DIR", "the folder to write: rank0.onnx, rank1.onnx, ..., plan.json")
    command.add_argument(
        "--tp", type=int, metavar="N", help="the number of ranks, 2 or more (has to be given)"
    )
    command.add_argument(
        "--shard-vocab",
        action="store_true",
        help="share out the embedding and the head too, by the words of the vocabulary",
    )
    shapes(command, CHECKED_SHAPES)
    proof(command)
    common(command, ())


def plugins(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse plugins`."""
    command = commands.add_parser(
        "plugins",
        help="list the plugins of the library, their versions, and its GPU architectures",
        description="Describe the plugin library; needs no GPU and no TensorRT.",
        epilog=EPILOG,
    )
    library(command, ("--plugins", "--library"))
    config_file(command)
    output_options(command)


def completion(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `opfuse completion`."""
    command = commands.add_parser(
        "completion",
        help="print the script that completes commands, options, and files in a shell",
        description="Print a completion script. For bash, for example:\n"
        "  opfuse completion bash > ~/.local/share/bash-completion/completions/opfuse",
        epilog=EPILOG,
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
