"""Scripts that complete commands, options, their values, and files in a shell.

They are made by shtab and hold the whole grammar: pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from opfuse import arguments
from opfuse.errors import MissingComponent


def script(shell: str) -> str:
    """The script for ``shell``, one of ``arguments.commands.SHELLS``.

    Raises:
        MissingComponent: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise MissingComponent(
            "completion scripts are made by shtab, which is not installed", "pip install shtab"
        ) from None
    parser = arguments.parser()
    _complete_files(parser, shtab.FILE)
    text: str = shtab.complete(parser, shell)
    return text


def _complete_files(parser: argparse.ArgumentParser, completer: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, completer)
        elif action.type is Path:
            action.complete = completer  # type: ignore[attr-defined]
