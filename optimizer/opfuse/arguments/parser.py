"""The parser class of all commands, and the exit codes that each help text ends with."""

from __future__ import annotations

import argparse
from typing import NoReturn

from opfuse.errors import InputError

EPILOG = """\
exit codes:
  0    done
  1    a check failed: numbers differ, an engine has another precision, a lock does not hold
  2    bad input or usage
  3    a needed component is missing: TensorRT, a GPU, the plugin library
  4    TensorRT refused the network or crashed
  70   a bug in opfuse
  124  the time limit has passed
  130  interrupted (Ctrl-C); 143: terminated
"""


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
