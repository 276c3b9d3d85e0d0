"""A check as people read it on a terminal: one line for each failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opfuse.gate.result import PASSED, SKIPPED, Check, Expectation
from opfuse.stages.report_text import clean, plain_text

_MEANT = "if that is meant: opfuse check MODEL --update, and commit the lock"


def render_check(check: Check) -> RenderableType:
    """The check for a console."""
    return Group(*_parts(check))


def check_as_text(check: Check) -> str:
    """The check as plain text, for a file."""
    return plain_text(render_check(check))


def shown(value: Any) -> str:
    """A value of the lock in a table: hashes short, what is not there as nothing."""
    if value is None:
        return "none"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _parts(check: Check) -> Iterator[RenderableType]:
    for item in check.failures:
        yield _line(item, "red", "FAILED")
    for item in check.expectations:
        if item.status == SKIPPED:
            yield _line(item, "yellow", "skipped")
        elif item.status == PASSED and item.message:
            yield _line(item, "green", "note")
    if check.changes and not check.new:
        yield _changes(check)
    yield Text.from_markup(verdict(check, clean(check.lock)))


def verdict(check: Check, lock: str) -> str:
    """The last line: how many expectations there are and how many failed."""
    if check.written:
        values = f", {len(check.changes)} values" if check.new else ""
        return f"{lock} was written{values}: commit it"
    if not check.expectations:
        return f"{lock} is as it was"
    count = sum(item.status != SKIPPED for item in check.expectations)
    if check.passed:
        return f"{lock}: all {count} expectations hold"
    return f"{lock}: {len(check.failures)} of {count} expectations failed; {_MEANT}"


def _line(item: Expectation, colour: str, word: str) -> Text:
    fix = f"; try: {clean(item.fix)}" if item.fix else ""
    name = f"{clean(item.title)}: " if item.status != PASSED else ""
    text = Text.from_markup(f"[{colour}]{word}[/] {name}{clean(item.message)}{fix}")
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _changes(check: Check) -> RenderableType:
    table = Table(title="changes of the lock", title_justify="left")
    for column in ("what", "locked", "now"):
        table.add_column(column, overflow="fold")
    for change in check.changes:
        table.add_row(*map(clean, (change.place, shown(change.old), shown(change.new))))
    return table
