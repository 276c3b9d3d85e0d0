"""Draws docs/layer.svg: one layer of the shipped Llama as it was exported, and as it is fused.

Run it from the repository root after ``make engine``: ``.venv/bin/python docs/draw_layer.py``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

import opfuse

ROOT = Path(__file__).resolve().parent.parent
LAYER = "/layers.0/"
FUSED, PRODUCT, OTHER = "#76b900", "#5b8def", "#c9ced6"
WIDTHS = (700, 300)


@dataclass(frozen=True)
class Box:
    """A node of the picture at its place."""

    node: NodeProto
    x: float
    y: float
    width: float
    height: float

    def svg(self) -> str:
        """The rectangle with the operator's name in it."""
        fill = FUSED if self.node.domain else PRODUCT if self.node.op_type == "MatMul" else OTHER
        size = min(self.height * 0.62, 13, self.width * 1.5 / max(len(self.node.op_type), 1))
        return (
            f'<rect x="{self.x - self.width / 2:.1f}" y="{self.y - self.height / 2:.1f}" '
            f'width="{self.width:.1f}" height="{self.height:.1f}" rx="2" fill="{fill}"/>'
            f'<text x="{self.x:.1f}" y="{self.y + size * 0.36:.1f}" font-size="{size:.1f}">'
            f"{self.node.op_type}</text>"
        )


def layer(model: ModelProto) -> list[NodeProto]:
    """The nodes of the layer; constants are left out, as TensorRT folds them."""
    return [n for n in model.graph.node if LAYER in n.name and n.op_type != "Constant"]


def edges(nodes: list[NodeProto]) -> list[tuple[int, int]]:
    """Pairs of indices, producer and consumer."""
    producers = {name: index for index, node in enumerate(nodes) for name in node.output}
    return sorted(
        {
            (producers[name], index)
            for index, node in enumerate(nodes)
            for name in node.input
            if name in producers
        }
    )


def ranks(count: int, arrows: list[tuple[int, int]]) -> list[int]:
    """The longest way from any start to each node; the nodes are sorted."""
    rank = [0] * count
    for source, target in arrows:
        rank[target] = max(rank[target], rank[source] + 1)
    return rank


def place(nodes: list[NodeProto], left: float, width: float, height: float) -> list[Box]:
    """Puts each node on the row of its rank, near the middle of what feeds it."""
    arrows = edges(nodes)
    rank = ranks(len(nodes), sorted(arrows, key=lambda arrow: arrow[1]))
    rows = [[i for i, r in enumerate(rank) if r == row] for row in range(max(rank) + 1)]
    widest = max(map(len, rows))
    step, slot = (height - 40) / len(rows), width / widest
    spot: dict[int, float] = {}
    for row in rows:
        middle = left + width / 2
        feeding = {i: [spot[s] for s, t in arrows if t == i] for i in row}
        row.sort(key=lambda i: (sum(feeding[i]) / len(feeding[i]) if feeding[i] else middle, i))
        gap = min(width / len(row), 3 * slot)
        for column, index in enumerate(row):
            spot[index] = middle + (column - (len(row) - 1) / 2) * gap
    wide = min(slot * 0.9, 120)
    return [
        Box(node, spot[i], 40 + (rank[i] + 0.5) * step, wide, min(step * 0.62, 26))
        for i, node in enumerate(nodes)
    ]


def panel(nodes: list[NodeProto], title: str, left: float, width: float, height: float) -> str:
    """One graph with its title."""
    boxes = place(nodes, left, width, height)
    lines = [
        f'<line x1="{boxes[s].x:.1f}" y1="{boxes[s].y:.1f}" '
        f'x2="{boxes[t].x:.1f}" y2="{boxes[t].y:.1f}"/>'
        for s, t in edges(nodes)
    ]
    heading = f'<text x="{left + width / 2:.0f}" y="24" font-size="16">{title}</text>'
    return "\n".join([heading, *lines, *(box.svg() for box in boxes)])


def main() -> None:
    """Writes the picture."""
    source = ROOT / "models" / "llama.onnx"
    with tempfile.TemporaryDirectory() as folder:
        opfuse.fuse(source, Path(folder, "fused.onnx"))
        after = layer(onnx.load(Path(folder, "fused.onnx")))
    before = layer(onnx.load(source))
    width, height = sum(WIDTHS) + 60, 860
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" text-anchor="middle">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        "<style>line{stroke:#9aa3af;stroke-width:.7}</style>"
    )
    parts = [
        panel(before, f"exported: {len(before)} nodes", 20, WIDTHS[0], height),
        panel(after, f"fused: {len(after)} nodes", 40 + WIDTHS[0], WIDTHS[1], height),
    ]
    (ROOT / "docs" / "layer.svg").write_text("\n".join([head, *parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
