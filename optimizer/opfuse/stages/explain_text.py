"""Anchors and savings as people read them on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from opfuse.explanation.page import in_bytes, in_time
from opfuse.explanation.result import FUSED, NEARLY
from opfuse.stages.report_text import clean

if TYPE_CHECKING:
    from opfuse.explanation.result import Anchor, Explanation

_COLOURS = {FUSED: "green", NEARLY: "yellow"}


def parts(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield what belongs below the counts of a report."""
    yield Text("anchors", style="italic")
    for anchor in explanation.anchors:
        yield _anchor(anchor)
    if explanation.savings:
        yield _savings(explanation)
    for line in explanation.assumed:
        yield Text.from_markup(f"note: {clean(line)}")


def _anchor(anchor: Anchor) -> Text:
    colour = _COLOURS.get(anchor.status, "dim")
    line = f"  {clean(anchor.op)} [bold]{clean(anchor.node)}[/]: [{colour}]{clean(anchor)}[/]"
    text = Text.from_markup(line)
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _savings(explanation: Explanation) -> Table:
    gpu = explanation.gpu
    table = Table(
        title=f"savings at most, on {gpu}",
        title_justify="left",
        caption=f"every operator counted as one kernel; {gpu.source}",
        caption_justify="left",
        show_footer=True,
    )
    total = explanation.total
    table.add_column("kind", "all")
    table.add_column("node", overflow="fold")
    for name, footer in (
        ("launches", str(total.launches)),
        ("bytes", in_bytes(total.bytes)),
        ("time", in_time(total.microseconds(gpu))),
    ):
        table.add_column(name, footer, justify="right", no_wrap=True)
    for saving in explanation.savings:
        cost = saving.cost
        numbers = str(cost.launches), in_bytes(cost.bytes), in_time(cost.microseconds(gpu))
        table.add_row(clean(saving.kind), clean(saving.node), *numbers)
    return table
