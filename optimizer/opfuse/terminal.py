"""What the command line shows: progress and errors on stderr, the report on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from opfuse.errors import InputError
from opfuse.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

_PIPE_WIDTH = 140


def wants_color(no_color: bool) -> bool:
    """Whether colours may be used: NO_COLOR and --no-color forbid them."""
    return not no_color and not os.environ.get("NO_COLOR")


def open_streams() -> None:
    """Opens what the caller has closed of stdin, stdout, and stderr, on the null device.

    Else the next file that is opened takes the number, and what is printed lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


@contextmanager
def printing() -> Iterator[None]:
    """Prints to stdout inside. A reader that has enough and closes the pipe is no failure.

    Raises:
        InputError: Nothing can be written to stdout, such as a file on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InputError(
                f"cannot write to stdout: {error.strerror or error}", "send it somewhere else"
            ) from None


def console(no_color: bool) -> Console:
    """Where the report goes: stdout, with room for names where it is no terminal."""
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            """Leaves it to `printing`; rich itself would exit with code 1."""
            raise BrokenPipeError

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Stdout(no_color=not wants_color(no_color), highlight=False, width=width)


def progress(*, quiet: bool, verbose: bool, color: bool) -> Progress:
    """A spinner where stderr is a terminal, one line per stage elsewhere, nothing if quiet."""
    if quiet:
        return Progress()
    if sys.stderr.isatty():
        return Spinner(color)
    return Lines(verbose)


class Lines(Progress):
    """One plain line when a stage has ended; with ``verbose`` one per step too."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self._verbose = verbose

    def ended(self, name: str, seconds: float) -> None:
        """Prints the stage and its time."""
        tell(f"opfuse: {name} {seconds:.2f} s\n")

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """Prints the step if asked to."""
        if self._verbose:
            tell(f"opfuse:   {_counted(text, done, total)}\n")


class Spinner(Progress):
    """A line on the terminal that follows the running stage."""

    def __init__(self, color: bool) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(stderr=True, no_color=not color, highlight=False)
        self._status: Status | None = None
        self._name = ""

    def started(self, name: str) -> None:
        """Starts to spin."""
        self._name = name
        unicode = self._console.encoding.startswith("utf")
        self._status = self._console.status(name, spinner="dots" if unicode else "line")
        self._status.start()

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """Shows the step behind the stage's name."""
        from opfuse.stages.report_text import clean

        if self._status is not None:
            self._status.update(f"{self._name}: {clean(_counted(text, done, total))}")

    def ended(self, name: str, seconds: float) -> None:
        """Leaves a line with the stage's time."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._console.print(f"{name:<10} {seconds:7.2f} s", style="dim")


def print_error(message: str) -> None:
    """Prints one error, with control characters of model names made visible."""
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in message)
    tell(f"opfuse: error: {shown}\n")


def tell(text: str) -> None:
    """Writes to stderr; where nobody takes it, the work goes on all the same."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _counted(text: str, done: int, total: int) -> str:
    return f"{text} {done}/{total}".strip() if total else text
