"""Boxes and edges of a graph, laid out in rows from inputs to outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 116, 34  # of a box
_GAP, _ROW = 8, 54
_MARGIN = 8
_SWEEPS = 6


@dataclass
class Box:
    """One node: ``style`` is its class in the page's style sheet, ``title`` its tooltip."""

    label: str
    detail: str
    title: str
    style: str = ""
    mark: str = ""
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Picture:
    """A laid-out graph; ``curves`` are SVG paths. ``hidden`` nodes were too many to draw."""

    width: int = 0
    height: int = 0
    boxes: tuple[Box, ...] = ()
    curves: tuple[str, ...] = ()
    nodes: int = 0
    hidden: bool = False


@dataclass
class _Place:
    """A box, or a bend of an edge that passes a row."""

    row: int
    wide: bool
    x: float = 0.0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)

    @property
    def span(self) -> int:
        return WIDTH if self.wide else _GAP


def lay_out(boxes: Sequence[Box], edges: Iterable[tuple[int, int]]) -> Picture:
    """Place boxes whose edges go from lower to higher indices.

    Args:
        boxes: In topological order; their ``x`` and ``y`` are set to the left upper corner.
        edges: Pairs of indices.
    """
    links = sorted(set(edges))
    places = [_Place(row, wide=True) for row in _rows(len(boxes), links)]
    routes = [_route(places, a, b) for a, b in links]
    rows: list[list[int]] = [[] for _ in range(1 + max((p.row for p in places), default=-1))]
    for index, place in enumerate(places):
        rows[place.row].append(index)
    for sweep in range(_SWEEPS):
        _order(places, rows, down=sweep % 2 == 0)
    for sweep in range(_SWEEPS):
        _align(places, rows, down=sweep % 2 == 0)
    left = min((p.x for p in places), default=0.0) - _MARGIN
    for place, box in zip(places, boxes, strict=False):
        box.x = round(place.x - left, 1)
        box.y = _MARGIN + place.row * _ROW
    width = max((p.x + p.span for p in places), default=0.0) - left + _MARGIN
    height = 2 * _MARGIN + max(0, len(rows) - 1) * _ROW + HEIGHT
    curves = tuple(_curve([places[i] for i in route], left) for route in routes)
    return Picture(int(width + 0.5), height, tuple(boxes), curves, len(boxes))


def _rows(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Return the row of each box: below all that it reads, and no higher than it need be."""
    rows = [0] * count
    for a, b in sorted(links, key=lambda link: link[1]):
        rows[b] = max(rows[b], rows[a] + 1)
    first = {a: min(rows[b] for c, b in links if c == a) for a, _ in links}
    fed = {b for _, b in links}
    return [first[i] - 1 if i in first and i not in fed else row for i, row in enumerate(rows)]


def _route(places: list[_Place], a: int, b: int) -> list[int]:
    route = [a]
    for row in range(places[a].row + 1, places[b].row):
        places.append(_Place(row, wide=False))
        route.append(len(places) - 1)
    route.append(b)
    for upper, lower in pairwise(route):
        places[upper].below.append(lower)
        places[lower].above.append(upper)
    return route


def _order(places: list[_Place], rows: list[list[int]], *, down: bool) -> None:
    """Sort each row by where its neighbours stand in the row before."""
    position = {index: spot for row in rows for spot, index in enumerate(row)}
    for row in rows if down else rows[::-1]:

        def middle(index: int) -> float:
            near = places[index].above if down else places[index].below
            spots = [position[i] for i in near]
            return sum(spots) / len(spots) if spots else position[index]

        row.sort(key=middle)
        position.update({index: spot for spot, index in enumerate(row)})
    for row in rows:
        x = 0.0
        for index in row:
            places[index].x = x
            x += places[index].span + _GAP


def _align(places: list[_Place], rows: list[list[int]], *, down: bool) -> None:
    """Move each place towards its neighbours as far as the row lets it."""
    for row in rows if down else rows[::-1]:
        wanted = []
        for index in row:
            place = places[index]
            near = [places[i] for i in (place.above if down else place.below)]
            middle = sum(p.x + p.span / 2 for p in near) / len(near) if near else None
            wanted.append(place.x if middle is None else middle - place.span / 2)
        _spread(places, row, wanted)


def _spread(places: list[_Place], row: list[int], wanted: list[float]) -> None:
    """Place a row as near to ``wanted`` as its boxes have room, around their common mean."""
    right = float("-inf")
    for index, want in zip(row, wanted, strict=True):
        places[index].x = max(want, right)
        right = places[index].x + places[index].span + _GAP
    shift = sum(w - places[i].x for i, w in zip(row, wanted, strict=True)) / max(1, len(row))
    for index in row:
        places[index].x += shift


def _curve(route: Sequence[_Place], left: float) -> str:
    first = route[0]
    x, y = first.x - left + first.span / 2, float(_MARGIN + first.row * _ROW + HEIGHT)
    parts = [f"M{x:.1f} {y:.1f}"]
    for place in route[1:]:
        to_x, to_y = place.x - left + place.span / 2, _MARGIN + place.row * _ROW
        half = (y + to_y) / 2
        parts.append(f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, float(to_y)
        if not place.wide:
            y += HEIGHT
            parts.append(f"V{y:.1f}")
    return "".join(parts)
