"""A module of this folder in a process of its own that answers a line with a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any


class Peer:
    """A process that first tells some facts and then answers whatever it is asked.

    ``facts`` is None until `start` is through, and stays so where the process has died.
    """

    def __init__(self, module: str, *arguments: object) -> None:
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process: subprocess.Popen[str] | None = None
        self.facts: Any = None

    def start(self) -> None:
        """Start it and wait for its facts; what it says on the way is shown where it dies."""
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.facts = self._answer()

    def ask(self, question: str) -> Any:
        """Its answer; an empty dictionary where it is not there any more."""
        if self.facts is None or self._process is None or self._process.stdin is None:
            return {}
        try:
            print(question, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return {}
        return self._answer() or {}

    def end(self) -> None:
        """Close its standard input, which is how it knows, and wait for it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._log.seek(0)
        words = self._log.read()[-3000:]
        print(f"{' '.join(self._command[2:])} died:\n{words}", flush=True)
        return None
