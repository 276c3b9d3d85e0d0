"""The failures that opfuse foresees, each with the exit code that the command line ends with.

Anything else that escapes is a bug of ours and keeps its traceback (exit code 70).
"""

from __future__ import annotations


class OpfuseError(Exception):
    """A foreseen failure: what happened, where, and what to do about it.

    Args:
        what: One sentence that names the file, node, or attribute.
        fix: What the reader can do, as an imperative; empty where nothing can be done.
    """

    exit_code = 70

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}\n  fix: {fix}" if fix else what)
        self.what = what
        self.fix = fix


class CheckFailed(OpfuseError):
    """The work was done and a check says no: numbers differ, a lock is broken, too slow."""

    exit_code = 1


class InputError(OpfuseError):
    """The model, an option, or a path is wrong."""

    exit_code = 2


class MissingComponent(OpfuseError):
    """What the command needs is not on this machine: TensorRT, a GPU, the plugin library."""

    exit_code = 3


class EngineError(OpfuseError):
    """TensorRT refused the network or died on it."""

    exit_code = 4


class TimeLimit(OpfuseError):
    """The time limit that the user set has passed."""

    exit_code = 124
