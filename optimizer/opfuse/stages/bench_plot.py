"""Where the time of each engine goes, as stacked bars: what TensorRT runs and what plugins run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from opfuse.files import write_atomically

if TYPE_CHECKING:
    from opfuse.runtime.timing import Measurement, StepTime
    from opfuse.stages.bench import Bench

PRODUCTS, OTHERS, SEGMENTS = "TensorRT: products", "TensorRT: other layers", "TensorRT"
WHOLE = "a module as a whole"
_PRODUCT = re.compile("matmul|gemm|gemv|conv|mha|attention|fc", re.IGNORECASE)
_COLOURS = {PRODUCTS: "#7f8c8d", OTHERS: "#bdc3c7", SEGMENTS: "#95a5a6", WHOLE: "#d5dbdb"}
_PLUGIN_COLOURS = ("#2e86c1", "#e67e22", "#27ae60", "#8e44ad", "#c0392b", "#16a085", "#d4ac0d")
_WIDTH, _LEFT, _BAR, _GAP, _LINE = 900, 20, 34, 34, 18


def parts_of(item: Measurement) -> dict[str, float]:
    """Microseconds of the steps of a run by what they are, scaled to the run by CUDA graph.

    Plugins go by their op; layers of TensorRT are products or others, by their names.
    """
    if not item.steps:
        return {WHOLE: item.graph.median_us}
    parts: dict[str, float] = {}
    for step in item.steps:
        for name, us in _shares(step):
            parts[name] = parts.get(name, 0.0) + us
    whole = sum(parts.values())
    return {name: us / whole * item.graph.median_us for name, us in parts.items() if whole}


def _shares(step: StepTime) -> list[tuple[str, float]]:
    if step.plugin:
        return [(step.what.rpartition("(")[2].rstrip(")"), step.median_us)]
    told = sum(us for _, us in step.layers)
    if not told:
        return [(SEGMENTS, step.median_us)]
    return [
        (PRODUCTS if _PRODUCT.search(name) else OTHERS, us / told * step.median_us)
        for name, us in step.layers
    ]


def write_plot(bench: Bench, path: Path) -> None:
    """Write the bars as SVG.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, plot(bench).encode())


def plot(bench: Bench) -> str:
    """One bar for each engine, all on the scale of the longest."""
    bars = [(Path(item.path).name, parts_of(item)) for item in bench.engines]
    names = list(dict.fromkeys(name for _, parts in bars for name in parts))
    names.sort(key=lambda name: (name not in _COLOURS, name))
    plugins = [name for name in names if name not in _COLOURS]
    colours = _COLOURS | {
        name: _PLUGIN_COLOURS[index % len(_PLUGIN_COLOURS)] for index, name in enumerate(plugins)
    }
    longest = max((sum(parts.values()) for _, parts in bars), default=0.0) or 1.0
    scale = (_WIDTH - 2 * _LEFT) / longest
    drawn, top = [], _LINE
    for title, parts in bars:
        text = f"{title}: {sum(parts.values()):.0f} us"
        drawn.append(f'<text x="{_LEFT}" y="{top}">{escape(text)}</text>')
        left = float(_LEFT)
        for name in (name for name in names if name in parts):
            width = parts[name] * scale
            drawn.append(
                f'<rect x="{left:.1f}" y="{top + 6}" width="{width:.1f}" height="{_BAR}" '
                f'fill="{colours[name]}"><title>{escape(name)}: {parts[name]:.1f} us</title></rect>'
            )
            left += width
        top += _BAR + _GAP
    for name in names:
        drawn.append(f'<rect x="{_LEFT}" y="{top}" width="12" height="12" fill="{colours[name]}"/>')
        drawn.append(f'<text x="{_LEFT + 18}" y="{top + 11}">{escape(name)}</text>')
        top += _LINE
    style = 'font-family="sans-serif" font-size="13"'
    size = f'width="{_WIDTH}" height="{top + 6}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(drawn) + "</svg>\n"
