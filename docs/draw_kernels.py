"""Draws docs/kernels.svg: what each kernel reaches of the copy bandwidth, over rows x columns.

Run it from the repository root with the JSON of ``python -m benchmarks.kernels``, best with
``--grid``: ``python docs/draw_kernels.py benchmarks/results/kernels-DATE.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL, LEFT, TOP = (52, 24), 62, 44
ACROSS = 4


def share(cell: dict, copy: float) -> float:
    """Bytes that have to be moved over the time taken, as a part of the copy bandwidth."""
    return cell["bytes"] / (cell["opfuse_us"] * 1e-6) / copy


def colour(part: float) -> str:
    """From grey to green; more than the copy is as good as the copy."""
    part = min(part, 1.0)
    low, high = (236, 239, 243), (118, 185, 0)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def panel(op: str, cells: list[dict], copy: float, x: float, y: float) -> str:
    """One op: a row of the picture for each number of rows."""
    rows = sorted({cell["rows"] for cell in cells})
    cols = sorted({cell["cols"] for cell in cells})
    width, height = CELL
    parts = [f'<text x="{x + LEFT}" y="{y + 14}" font-size="14" text-anchor="start">{op}</text>']
    parts += [
        f'<text x="{x + LEFT + (i + 0.5) * width}" y="{y + TOP - 8}">{col}</text>'
        for i, col in enumerate(cols)
    ]
    parts += [
        f'<text x="{x + LEFT - 6}" y="{y + TOP + (i + 0.65) * height}" '
        f'text-anchor="end">{row}</text>'
        for i, row in enumerate(rows)
    ]
    for cell in cells:
        part = share(cell, copy)
        left = x + LEFT + cols.index(cell["cols"]) * width
        top = y + TOP + rows.index(cell["rows"]) * height
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width - 2}" height="{height - 2}" '
            f'fill="{colour(part)}"/>'
            f'<text x="{left + width / 2}" y="{top + height * 0.62}">{part:.0%}</text>'
        )
    return "".join(parts)


def main(path: Path) -> None:
    """Writes the picture."""
    figures = json.loads(path.read_text())
    grid, copy = figures.get("grid", figures["rows"]), figures["copy_bytes_per_s"]
    ops = list(dict.fromkeys(cell["op"] for cell in grid))
    columns = {op: {cell["cols"] for cell in grid if cell["op"] == op} for op in ops}
    wide = LEFT + CELL[0] * max(map(len, columns.values())) + 16
    lines = {op: {cell["rows"] for cell in grid if cell["op"] == op} for op in ops}
    high = TOP + CELL[1] * max(map(len, lines.values())) + 22
    width, height = wide * ACROSS, 30 + high * -(-len(ops) // ACROSS)
    title = (
        f"Share of the copy bandwidth ({copy / 1e9:.0f} GB/s), {figures['dtype']}, "
        f"{figures['gpu']}, {figures['date'][:10]}; rows down, columns across"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" text-anchor="middle">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{width / 2}" y="18" font-size="14">{title}</text>'
    ]
    for i, op in enumerate(ops):
        cells = [cell for cell in grid if cell["op"] == op]
        parts.append(panel(op, cells, copy, i % ACROSS * wide, 30 + i // ACROSS * high))
    (ROOT / "docs" / "kernels.svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
