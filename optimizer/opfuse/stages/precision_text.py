"""A conversion to another precision as people read it on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_MOST = 20


def parts(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what a report's section "precision" says."""
    low = facts["precision"]
    nodes, products = facts["nodes"], facts["products"]
    line = f"precision: [bold]{low}[/]; {products.get(low, 0)} products and "
    line += f"{nodes.get(low, 0)} of all nodes in {low}, {products.get('fp32', 0)} and "
    line += f"{nodes.get('fp32', 0)} in fp32; {facts['casts']} casts between them"
    yield Text.from_markup(line)
    yield Text(f"activations: {facts['ranges']}")
    yield _verdict(facts["comparison"], low)
    if facts["kept"]:
        yield _kept(facts["kept"])


def _verdict(comparison: Mapping[str, Any] | None, low: str) -> Text:
    if comparison is None:
        return Text("not compared with the original")
    if comparison["not_run"]:
        return Text(f"not compared with the original: {comparison['not_run']}")
    outputs = comparison["outputs"].values()
    error = max((item["rms"] for item in outputs), default=0.0)
    largest = max((item["max_rel"] for item in outputs), default=0.0)
    return Text.from_markup(
        f"[green]as the original[/], every operator rounded to {low}: root mean square error "
        f"{error:.1e}, of one value at most {largest:.1e}"
    )


def _kept(kept: list[Mapping[str, str]]) -> Table:
    table = Table(title="kept in fp32", title_justify="left")
    for column in ("node", "operator", "because"):
        table.add_column(column, overflow="fold")
    for item in kept[:_MOST]:
        table.add_row(*(_clean(item[name]) for name in ("node", "op", "reason")))
    if len(kept) > _MOST:
        rest = Counter(item["op"] for item in kept[_MOST:])
        counts = ", ".join(f"{op} {count}" for op, count in sorted(rest.items()))
        table.caption = f"{len(kept) - _MOST} more: {counts}"
    return table


def _clean(text: str) -> str:
    """Text that comes from a model, safe for a terminal."""
    return escape("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
