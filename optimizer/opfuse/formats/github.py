"""Findings as annotations of a GitHub runner, which reads them from what a step prints."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from opfuse.formats.finding import RULES, Finding, visible

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
_MOST = 10  # of each level, which is what GitHub shows of a step


def annotated(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield a line for each, such as ``::error file=opfuse.lock,line=9,title=opfuse lock::...``."""
    shown: Counter[str] = Counter()
    for finding in findings:
        level = RULES[finding.rule][0]
        shown[level] += 1
        if shown[level] <= _MOST:
            where = f"file={_value(_inside(finding.file))},line={finding.line}"
            title = _value(f"opfuse {finding.rule}")
            yield f"::{_COMMANDS[level]} {where},title={title}::{_text(finding.text)}"


def _inside(file: str) -> str:
    """The path from the working directory, where the sources lie."""
    path = os.path.relpath(file)
    return file if path.startswith("..") else path


def _text(text: str) -> str:
    return visible(text).replace("%", "%25")


def _value(text: str) -> str:
    return _text(text).replace(":", "%3A").replace(",", "%2C")
