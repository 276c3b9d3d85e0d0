"""The report as people read it on a terminal."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opfuse.stages.report import Report, plain

if TYPE_CHECKING:
    from opfuse.runtime.library import LibraryInfo
    from opfuse.stages.package import Packaged
    from opfuse.stages.verify import Comparison

_MOST_NEARLY = 20
_FILE_WIDTH = 120


def clean(text: object) -> str:
    """Text that comes from a model, safe for a terminal: no control characters, no markup."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))
    return escape(shown)


def as_text(report: Report) -> str:
    """The report as plain text, for a file."""
    return plain_text(render(report))


def comparison_as_text(comparison: Comparison) -> str:
    """The outputs of two models side by side as plain text, for a file."""
    return plain_text(render_comparison(comparison))


def plain_text(shown: RenderableType) -> str:
    """What a console shows, without colours, for a file."""
    console = Console(
        file=io.StringIO(), width=_FILE_WIDTH, color_system=None, force_terminal=False
    )
    console.print(shown, crop=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def render(report: Report, *, every_candidate: bool = False) -> RenderableType:
    """The report for a console; ``every_candidate`` tells of fused ones too and cuts nothing."""
    return Group(*_parts(report, every_candidate))


def _parts(report: Report, every_candidate: bool) -> Iterator[RenderableType]:
    yield _headline(report)
    if report.unwritten is not None:
        yield _line(f"dry run: wrote nothing; would write {clean(', '.join(report.unwritten))}")
    for note in report.model.get("notes", ()):
        yield _line(f"note: {clean(note)}")
    yield _fusions(report)
    if every_candidate and report.explanation is not None:
        from opfuse.stages.explain_text import parts

        yield from parts(report.explanation)
    if report.misses:
        yield _nearly(report, None if every_candidate else _MOST_NEARLY)
    facts = report.as_dict()
    yield _proof(facts["proof"])
    if report.precision is not None:
        from opfuse.stages.precision_text import parts as precision_parts

        yield from precision_parts(facts["precision"])
    if report.engine is not None:
        yield from _engine(facts)
    yield _timings(report)


def _line(markup: str) -> Text:
    """One line, never folded: paths stay whole."""
    text = Text.from_markup(markup)
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _headline(report: Report) -> Text:
    model = report.model
    line = f"[bold]{clean(model['path'])}[/]: opset {model['opset']}"
    line += f", {model['nodes']} nodes became {model['fused_nodes']}"
    if model["output"]:
        line += f" -> [bold]{clean(model['output'])}[/]"
    return _line(line)


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


def _nearly(report: Report, most: int | None) -> RenderableType:
    table = Table(title="nearly fused", title_justify="left")
    for column in ("kind", "blocking node", "reason", "what to do"):
        table.add_column(column, overflow="fold")
    misses = [miss for kind in report.as_dict()["fusions"] for miss in report.nearly(kind)]
    for miss in misses[:most]:
        table.add_row(*map(clean, (miss.kind, miss.node, miss.reason, miss.advice)))
    if most is not None and len(misses) > most:
        table.caption = f"{len(misses) - most} more: see opfuse explain"
    return table


def _proof(proof: dict[str, Any] | None) -> Text:
    if proof is None:
        return Text("proof: not run")
    undone = proof["failed"]
    verdict = f"[red]{undone} undone[/]" if undone else "[green]all equal to the original[/]"
    line = f"proof: {proof['matches']} distinct fusions, {verdict}"
    whole = proof["whole"]
    if whole and whole["not_run"]:
        line += f"; the whole model was not compared: {clean(whole['not_run'])}"
    elif whole:
        line += "; [green]the whole model too[/]"
    return _line(f"{line}; largest relative error {proof['max_rel_err']:.1e}")


def _engine(facts: dict[str, Any]) -> Iterator[RenderableType]:
    choices = Counter((item["op"], item["choice"], item["reason"]) for item in facts["lowering"])
    if choices:
        table = Table(title="lowering", title_justify="left")
        for column in ("op", "becomes", "count", "because"):
            table.add_column(column, justify="right" if column == "count" else "left")
        for (op, choice, reason), count in sorted(choices.items()):
            table.add_row(clean(op), clean(choice), str(count), clean(reason))
        yield table
    engine = facts["engine"]
    table = Table(title="engine", title_justify="left", show_header=False)
    table.add_column("fact")
    table.add_column("value", overflow="fold")
    for name, value in engine.items():
        if name not in ("io", "notes", "sha256", "left", "fp32_products", "cache"):
            table.add_row(clean(name.replace("_", " ")), clean(_shown(value)) or "none")
    for tensor in engine["io"]:
        table.add_row(clean(tensor["mode"]), clean(_tensor(tensor)))
    yield table
    for note in engine["notes"]:
        yield _line(f"note: {clean(note)}")


def _tensor(tensor: dict[str, Any]) -> str:
    shape = _dims(tensor["shape"])
    if tensor["range"]:
        low, usual, high = map(_dims, tensor["range"])
        shape = f"{low} to {high}, tuned for {usual}"
    return f"{tensor['name']}: {tensor['dtype']} {shape}"


def _dims(shape: list[int]) -> str:
    return "x".join("?" if dim < 0 else str(dim) for dim in shape) or "scalar"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.2g}"
    return str(value)


def _timings(report: Report) -> Text:
    parts = [f"{name} {seconds:.2f} s" for name, seconds in report.timings.items()]
    return _line("time: " + ", ".join(parts))


def render_comparison(comparison: Comparison) -> RenderableType:
    """The outputs of two models side by side."""
    facts = plain(comparison)
    table = Table(title="outputs", title_justify="left")
    table.add_column("output", overflow="fold")
    for name, difference in facts["outputs"].items():
        if not table.rows:
            for column in difference:
                table.add_column(clean(column.replace("_", " ")), justify="right")
        table.add_row(clean(name), *(clean(_shown(value)) for value in difference.values()))
    verdict = "[green]equal[/]" if comparison.passed else "[red]different[/]"
    line = f"{verdict} within a relative error of {comparison.tolerance:g}"
    if comparison.refused:
        line = f"[red]different[/]: the second model does not run: {clean(comparison.refused)}"
    parts = [*([table] if table.rows else []), *_layers(comparison), Text.from_markup(line)]
    if comparison.first_wrong is not None:
        told = f"the first operator beyond it is {comparison.first_wrong}"
        parts.append(Text(told if comparison.first_wrong else "no part of the model alone is"))
    return Group(*parts)


def _layers(comparison: Comparison) -> list[RenderableType]:
    """What every step of a bundle wrote, and the first that is beyond the tolerance."""
    if not comparison.layers:
        return []
    table = Table(title="steps", title_justify="left")
    for column in ("step", "writes"):
        table.add_column(column, overflow="fold")
    table.add_column("difference", justify="right")
    for layer in comparison.layers:
        table.add_row(clean(layer.step), clean(layer.tensor), clean(str(layer.difference)))
    first = comparison.first_apart
    told = "no step is beyond the tolerance"
    if first is not None:
        told = f"the first step beyond the tolerance is {first.step}, which writes {first.tensor}"
    return [table, Text(told)]


def render_package(packaged: Packaged) -> RenderableType:
    """What was written for Triton, and how to serve it."""
    batch = packaged.max_batch_size
    headline = f"[bold]{clean(packaged.folder)}[/]: for Triton's {packaged.backend} backend"
    headline += f", batches of up to {batch}" if batch else ""
    lines = [f"  {clean(name)}" for name in packaged.files]
    lines += ["serve it with", *(f"  {clean(command)}" for command in packaged.serve)]
    lines += [f"note: {clean(note)}" for note in packaged.notes]
    return Group(*map(_line, (headline, *lines)))


def render_library(library: LibraryInfo) -> RenderableType:
    """The plugins of a library."""
    headline = Text(
        f"version {library.version}, for {', '.join(library.architectures)}, "
        f"compiled with TensorRT {library.headers} headers"
    )
    table = Table()
    for column in ("plugin", "version", "inputs", "outputs", "attributes"):
        table.add_column(column, overflow="fold")
    for op in library.ops:
        least, most = op.inputs
        inputs = str(least) if least == most else f"{least} to {most}"
        attributes = ", ".join(f"{name} {kind}" for name, kind in op.attributes.items())
        table.add_row(op.name, op.version, inputs, str(op.outputs), attributes)
    return Group(headline, table)
