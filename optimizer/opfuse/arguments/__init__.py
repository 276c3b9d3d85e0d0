"""The command line's grammar: argv -> parsed arguments. No logic, and nothing heavy to import."""

from __future__ import annotations

import argparse

from opfuse.arguments import commands
from opfuse.arguments.options import REFUSED
from opfuse.arguments.parser import EPILOG, Parser
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.shape_syntax import parse_shapes


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="opfuse",
        description="Fuse the transformer subgraphs of an ONNX model and build a TensorRT engine.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="store_true", help="print versions and exit")
    add = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands.build(add)
    commands.fuse(add)
    commands.explain(add)
    commands.verify(add)
    commands.bench(add)
    commands.plugins(add)
    return top


def config_of(args: argparse.Namespace) -> Config:
    """The configuration that the arguments of build, fuse, or explain spell.

    Raises:
        InputError: No model or two, or an option that this release refuses.
    """
    for name, fix in REFUSED.items():
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
