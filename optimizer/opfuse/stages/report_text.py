"""The report as people read it on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opfuse.stages.report import Report

_MOST_NEARLY = 20
_FILE_WIDTH = 120


def clean(text: object) -> str:
    """Text that comes from a model, safe for a terminal: no control characters, no markup."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))
    return escape(shown)


def as_text(report: Report) -> str:
    """The report as plain text, for a file."""
    console = Console(
        file=io.StringIO(), width=_FILE_WIDTH, color_system=None, force_terminal=False
    )
    console.print(render(report))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def render(report: Report, *, every_candidate: bool = False) -> RenderableType:
    """The report as a rich renderable; ``every_candidate`` lists fused ones too, and cuts nothing."""
    return Group(*_parts(report, every_candidate))


def _parts(report: Report, every_candidate: bool) -> Iterator[RenderableType]:
    yield Text.from_markup(_headline(report))
    for note in report.model.get("notes", ()):
        yield Text.from_markup(f"note: {clean(note)}")
    yield _fusions(report)
    if every_candidate and report.matches:
        yield _matches(report)
    if report.misses:
        yield _nearly(report, None if every_candidate else _MOST_NEARLY)
    facts = report.as_dict()
    yield Text.from_markup(_proof(facts["proof"]))
    if report.engine is not None:
        yield from _engine(facts)
    yield Text.from_markup(_timings(report))


def _headline(report: Report) -> str:
    model = report.model
    line = f"[bold]{clean(model['path'])}[/]: {model['nodes']} nodes, opset {model['opset']}"
    if "fused_nodes" in model:
        line += f" -> {model['fused_nodes']} nodes"
    if model.get("output"):
        line += f" in [bold]{clean(model['output'])}[/]"
    return line


def _fusions(report: Report) -> RenderableType:
    facts = report.as_dict()["fusions"]
    shown = {kind: item for kind, item in facts.items() if item["fused"] or item["nearly"]}
    if not shown:
        return Text("no candidate for a fusion in this model")
    table = Table(title="fusions", title_justify="left")
    table.add_column("kind")
    table.add_column("fused", justify="right")
    table.add_column("nearly", justify="right")
    for kind, item in shown.items():
        table.add_row(clean(kind), str(item["fused"]), str(len(item["nearly"]) or ""))
    return table


def _matches(report: Report) -> RenderableType:
    table = Table(title="fused", title_justify="left")
    for column in ("kind", "node"):
        table.add_column(column, overflow="fold")
    for match in report.matches:
        table.add_row(clean(match.kind), clean(match.anchor or match.node))
    return table


def _nearly(report: Report, most: int | None) -> RenderableType:
    table = Table(title="nearly fused", title_justify="left")
    for column in ("kind", "blocking node", "reason"):
        table.add_column(column, overflow="fold")
    misses = [miss for kind in report.as_dict()["fusions"] for miss in report.nearly(kind)]
    for miss in misses[:most]:
        table.add_row(clean(miss.kind), clean(miss.node), clean(miss.reason))
    if most is not None and len(misses) > most:
        table.caption = f"{len(misses) - most} more: see opfuse explain"
    return table


def _proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "proof: not run"
    error = proof["max_rel_err"]
    shown = f"{error:.1e}" if isinstance(error, float) else error
    verdict = "[green]all equal[/]" if not proof["failed"] else f"[red]{proof['failed']} undone[/]"
    line = f"proof: {proof['matches']} distinct fusions, {verdict}, largest relative error {shown}"
    return "\n".join([line, *(f"  undone: {clean(failure)}" for failure in proof["failures"])])


def _engine(facts: dict[str, Any]) -> Iterator[RenderableType]:
    if facts["lowering"]:
        table = Table(title="lowering", title_justify="left")
        columns = list(facts["lowering"][0])
        for column in columns:
            table.add_column(clean(column), overflow="fold")
        for choice in facts["lowering"]:
            table.add_row(*(clean(choice[column]) for column in columns))
        yield table
    table = Table(title="engine", title_justify="left", show_header=False)
    table.add_column("fact")
    table.add_column("value", overflow="fold")
    for name, value in facts["engine"].items():
        table.add_row(clean(name.replace("_", " ")), clean(_shown(value)))
    yield table


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)


def _timings(report: Report) -> str:
    parts = [f"{name} {seconds:.2f} s" for name, seconds in report.timings.items()]
    return "time: " + ", ".join(parts)
