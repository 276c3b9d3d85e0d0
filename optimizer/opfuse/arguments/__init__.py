"""The command line's grammar: argv and opfuse.toml -> parsed arguments; nothing heavy to import."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opfuse.arguments import commands, config_file
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
    commands.check(add)
    commands.bench(add)
    commands.package(add)
    commands.shard(add)
    commands.plugins(add)
    commands.completion(add)
    return top


def read(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line says; where it is silent what opfuse.toml says, else the default.

    ``given_by_file`` holds the file's name and the options that were taken from it.

    Raises:
        InputError: The line or the file has what is no option.
    """
    top = parser()
    parsers = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices
    defaults = {name: _take_defaults(command) for name, command in parsers.items()}
    given = vars(top.parse_args(argv))
    command = given["command"]
    if command is None:
        return argparse.Namespace(**given)
    said = {name: value for name, value in given.items() if value is not None}
    file = config_file.find(said.get("config")) if "config" in defaults[command] else None
    written: dict[str, Any] = {}
    if file is not None and not said.get("no_config"):
        readers = {name: item for name, item in parsers.items() if "config" in defaults[name]}
        actions = {name: config_file.actions_of(item) for name, item in readers.items()}
        written = config_file.read(file, actions, command, named="config" in said)
    if "onnx" in said:  # the model in trtexec's spelling
        written.pop("model", None)
    taken = [name for name in written if name not in said]
    known = {**given, **defaults[command], **{name: written[name] for name in taken}, **said}
    return argparse.Namespace(**known, given_by_file=(file, taken))


def _take_defaults(command: argparse.ArgumentParser) -> dict[str, Any]:
    """The defaults of the options, which leave the parser: what it gives then was written."""
    defaults: dict[str, Any] = {}
    for action in command._actions:
        if action.option_strings and action.default is not argparse.SUPPRESS:
            defaults.setdefault(action.dest, action.default)
            action.default = argparse.SUPPRESS
    return defaults


def config_of(args: argparse.Namespace) -> Config:
    """The configuration that the arguments of build, fuse, or explain spell.

    Raises:
        InputError: No model or two, or an option that this release refuses.
    """
    model, options = options_of(args)
    return Config(model=model, output=getattr(args, "output", None), **options)


def options_of(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model, and the fields of Config that the arguments give a value.

    Raises:
        InputError: As `config_of`.
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
        if level in options:
            options[level] = _joined(level, options[level])
    return args.model or args.onnx, options


def _joined(
    level: str, texts: Sequence[str] | Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    if isinstance(texts, Mapping):  # from opfuse.toml
        return dict(texts)
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        for name, shape in parse_shapes(text).items():
            if name in shapes:
                raise InputError(f"{level} of input {name!r} are given twice", "give them once")
            shapes[name] = shape
    return shapes
