"""The report as one self-contained HTML page: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from opfuse.explanation.layout import HEIGHT, WIDTH
from opfuse.explanation.result import FUSED, NEARLY, Explanation
from opfuse.explanation.roofline import LAUNCH_SECONDS, Cost

if TYPE_CHECKING:
    from jinja2 import Template

LEGEND = ("attention", "norm", "rope", "gate", "gemm", "merge")


def page(report: Mapping[str, Any], explanation: Explanation | None) -> str:
    """Return the page.

    Args:
        report: The report in its JSON form; its timings are not shown, so that equal models give
            equal pages.
        explanation: What the page draws and tells.

    Raises:
        ValueError: There is no explanation.
    """
    if explanation is None:
        raise ValueError("a page needs an explanation")
    misses = [
        {"kind": kind, **miss}
        for kind, item in report["fusions"].items()
        for miss in item["nearly"]
    ]
    states = Counter(anchor.status for anchor in explanation.anchors)
    return _template().render(
        name=PurePath(report["model"]["path"]).name,
        report=report,
        explanation=explanation,
        groups=_groups(explanation),
        misses=misses,
        states=states,
        tiles=_tiles(explanation, states),
        legend=LEGEND,
        width=WIDTH,
        height=HEIGHT,
        launch_us=LAUNCH_SECONDS * 1e6,
    )


def _tiles(explanation: Explanation, states: Counter[str]) -> list[tuple[str, str]]:
    total = explanation.total
    return [
        (str(states[FUSED]), "anchors fused"),
        (str(states[NEARLY]), "nearly fused"),
        (str(total.launches), "launches saved"),
        (in_bytes(total.bytes), "less memory traffic"),
        (in_time(total.microseconds(explanation.gpu)), f"at most, on {explanation.gpu.name}"),
    ]


def _groups(explanation: Explanation) -> list[dict[str, object]]:
    """Return the savings by kind, each with what one of them and what all of them save."""
    found: dict[str, list[Any]] = {}
    for saving in explanation.savings:
        found.setdefault(saving.kind, []).append(saving)
    totals = {kind: sum((s.cost for s in members), Cost()) for kind, members in found.items()}
    times = {kind: total.microseconds(explanation.gpu) for kind, total in totals.items()}
    return [
        {"kind": kind, "members": found[kind], "total": totals[kind], "time": times[kind]}
        for kind in sorted(found, key=lambda kind: -times[kind])
    ]


def in_bytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"


def in_time(microseconds: float) -> str:
    """Return a time as people read it."""
    if abs(microseconds) >= 1000:
        return f"{microseconds / 1000:.2f} ms"
    return f"{microseconds:.1f} µs"


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opfuse.explanation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = in_bytes
    environment.filters["time"] = in_time
    return environment.get_template("page.html.j2")
