"""opfuse.toml: the options of the command line, written down. What is wrong is told by its line."""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opfuse.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "opfuse.toml"
SHAPES = ("min_shapes", "opt_shapes", "max_shapes")
_SPELT = {"reports": "report", "plugin_library": "plugins"}
_OWN_ARGUMENTS = ("model", "output")  # of one command: at the top they would be those of all
_COMMAND_LINE_ONLY = ("help", "config", "no_config", "debug", "onnx", "command", "version")
_MOST_BYTES = 1 << 20

Actions = Mapping[str, argparse.Action]


@dataclass(frozen=True)
class _File:
    path: Path
    text: str

    def refuse(self, table: str, key: str, what: str, fix: str) -> InputError:
        return InputError(f"{self.path}:{self._line(table, key)}: {what}", fix)

    def _line(self, table: str, key: str) -> int:
        """The line on which a key stands, or its table where the key is spelt oddly."""
        place = f"{table}.{key}".strip(".")
        current, nearest = "", 1
        for number, line in enumerate(self.text.splitlines(), 1):
            bare = re.sub(r"""["'\s]""", "", line)
            if header := re.match(r"\[+([^\]]*)", bare):
                current = name = header[1]
            else:
                name = f"{current}.{bare.partition('=')[0]}".strip(".")
            if name == place or name.startswith(f"{place}."):
                return number
            nearest = number if name == table else nearest
        return nearest


def find(explicit: Path | None) -> Path | None:
    """The file that ``--config`` names, else opfuse.toml in the working directory, else None."""
    return explicit or (Path(NAME) if os.path.lexists(NAME) else None)


def read(
    path: Path, commands: Mapping[str, Actions], command: str, *, named: bool
) -> dict[str, Any]:
    """The options that a file gives to a command, by the name that argparse has for each.

    Args:
        path: The file.
        commands: The options of every command, by that name.
        command: The one that runs. The tables of the others are checked all the same.
        named: Whether somebody asked for this file. One that only lay there may name no library:
            a folder from elsewhere would bring code with it.

    Raises:
        InputError: The file cannot be read, or has a key or a value that is no option.
    """
    file = _File(path, _text(path))
    facts = _parse(file)
    tables = {
        key: value for key, value in facts.items() if key in commands and isinstance(value, dict)
    }
    shared = {key: value for key, value in facts.items() if key not in tables}
    found = {
        dest: value
        for dest, value in _options(file, "", shared, _shared_actions(commands), commands)
        if dest in commands[command]
    }
    for name, table in tables.items():
        own = dict(_options(file, name, table, commands[name], commands))
        if name == command:
            found |= own
    if "plugin_library" in found and not named:
        home = command if "plugins" in tables.get(command, {}) else ""
        fix = f"give --plugins, or say that the file is meant: --config {path}"
        raise file.refuse(home, "plugins", "a file that nobody named brings a library", fix)
    return found


def _shared_actions(commands: Mapping[str, Actions]) -> Actions:
    merged: dict[str, argparse.Action] = {}
    for actions in commands.values():
        merged = {**actions, **merged}
    return {dest: action for dest, action in merged.items() if dest not in _OWN_ARGUMENTS}


def actions_of(parser: argparse.ArgumentParser) -> Actions:
    """What a file may give to a command, by argparse's name; of two spellings the first."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        settable = action.option_strings or action.dest == "model"
        if settable and action.dest not in _COMMAND_LINE_ONLY and action.help != argparse.SUPPRESS:
            found.setdefault(action.dest, action)
    return found


def _text(path: Path) -> str:
    fix = "correct it, name another with --config, or go without: --no-config"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file", fix)
        if status.st_size > _MOST_BYTES:
            raise InputError(f"{path} has {status.st_size} bytes: that is no list of options", fix)
        return path.read_bytes().decode("utf-8-sig")  # some editors begin with a mark
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8", fix) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}", fix) from None


def _parse(file: _File) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = tomllib.loads(file.text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        numbers = re.findall(r"\d+", place)
        line = numbers[0] if numbers else len(file.text.splitlines()) or 1
        raise InputError(
            f"{file.path}:{line}: not TOML: {what}", "strings stand in quotes: see docs/config.md"
        ) from None
    except RecursionError:
        raise InputError(f"{file.path}: nested too deeply", "see docs/config.md") from None
    return facts


def _options(
    file: _File, table: str, facts: Mapping[str, Any], actions: Actions, commands: Collection[str]
) -> Iterator[tuple[str, Any]]:
    keys = {spelt(dest): dest for dest in actions}
    seen = set()
    for key, raw in facts.items():
        dest = keys.get(key.replace("_", "-"))
        if dest is None:
            raise _unknown(file, table, key, list(keys), () if table else commands)
        if dest in seen:
            raise file.refuse(table, key, f"{key} is given twice", "give it once")
        seen.add(dest)
        try:
            yield dest, _value(actions[dest], raw, file.path.parent)
        except _Unfit as error:
            raise file.refuse(table, key, f"{key} = {_shown(raw)}", f"give {error}") from None


def spelt(dest: str) -> str:
    """How the file and the command line spell the option of this name of argparse's."""
    return _SPELT.get(dest, dest).replace("_", "-")


def _unknown(
    file: _File, table: str, key: str, keys: list[str], commands: Collection[str]
) -> InputError:
    from difflib import get_close_matches

    where = f"opfuse {table}" if table else "any command"
    near = get_close_matches(key.replace("_", "-"), [*keys, *commands], 1)
    if not table and key in _OWN_ARGUMENTS:
        fix = f"put it into the table of a command, such as [build]: {key} = ..."
    elif near:
        fix = f"[{near[0]}] is the table of a command" if near[0] in commands else ""
        fix = fix or f"did you mean {near[0]}?"
    else:
        fix = f"the options are {', '.join(sorted(keys))}"
    return file.refuse(table, key, f"{key} is no option of {where}", fix)


class _Unfit(Exception):
    """A value is not of the kind that the option takes, which the message says."""


def _value(action: argparse.Action, raw: Any, folder: Path) -> Any:
    """The value as the command line would give it to the option."""
    if action.dest in SHAPES:
        return _shapes(raw)
    if isinstance(action, argparse._AppendAction):
        items = raw if isinstance(raw, list) else [raw]
        return [_one(action, item, folder) for item in items]
    return _one(action, raw, folder)


def _one(action: argparse.Action, raw: Any, folder: Path) -> Any:
    if action.nargs == 0:
        return _checked(raw, isinstance(raw, bool), "true or false")
    number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if action.type is int:
        return _checked(raw, number and isinstance(raw, int), "a whole number")
    if action.type is float:
        return float(_checked(raw, number, "a number"))
    text = isinstance(raw, str) and raw
    if action.choices is not None:
        choices = list(action.choices)
        return _checked(raw, text and raw in choices, f"one of {', '.join(map(str, choices))}")
    if action.type is Path:
        fits = text and "\0" not in raw
        return folder / _checked(raw, fits, "the path of a file, in quotes")
    _checked(raw, text, "a text in quotes")
    try:
        return action.type(raw) if callable(action.type) else raw
    except argparse.ArgumentTypeError as error:
        raise _Unfit(f"another one: {error}") from None


def _shapes(raw: Any) -> Any:
    """Texts as on the command line, or a table of input names and lists of sizes."""
    kind = 'a table such as { input_ids = [1, 128] }, or a text such as "input_ids:1x128"'
    if isinstance(raw, str):
        return [raw]
    if not isinstance(raw, dict):
        raise _Unfit(kind)
    for sizes in raw.values():
        if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
            raise _Unfit(f"{kind}, with sizes of 1 or more")
    return {name: tuple(sizes) for name, sizes in raw.items()}


def _checked(raw: Any, fits: object, kind: str) -> Any:
    if not fits:
        raise _Unfit(kind)
    return raw


def _shown(raw: Any) -> str:
    text = str(raw).lower() if isinstance(raw, bool) else repr(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."
