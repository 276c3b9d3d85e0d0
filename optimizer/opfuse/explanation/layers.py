"""The repeating stretches of a graph: its layers, found from structure alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from opfuse.graph.facts import Facts

_SHORTEST = 3  # nodes of a layer; less is a coincidence
_WEIGHT = 1024  # elements; a vector of frequencies is no layer's weight
_WORK = frozenset(("MatMul", "Gemm", "Conv"))


@dataclass(frozen=True)
class Stretch:
    """``count`` equal runs of ``length`` nodes from ``start`` on."""

    start: int
    length: int
    count: int

    @property
    def end(self) -> int:
        """The index behind the last run."""
        return self.start + self.length * self.count


def cut(nodes: Sequence[gs.Node], facts: Facts) -> list[Stretch]:
    """Cut sorted nodes into stretches; what does not repeat has a count of 1."""
    codes = _codes(nodes, facts)
    works = np.array([node.domain == "opfuse" or node.op in _WORK for node in nodes], bool)
    cuts = _cuts(nodes)
    found: list[Stretch] = []
    pending = [(0, len(nodes))]
    while pending:
        start, end = pending.pop()
        run = _longest(codes[start:end], works[start:end], cuts[start : end + 1])
        if run is None:
            if end > start:
                found.append(Stretch(start, end - start, 1))
            continue
        layer = Stretch(start + run.start, run.length, run.count)
        found.append(layer)
        pending += [(start, layer.start), (layer.end, end)]
    return sorted(found, key=lambda stretch: stretch.start)


def in_order(nodes: Sequence[gs.Node]) -> list[gs.Node]:
    """Return sorted nodes with what all layers share, such as masks and angles, before them."""
    layered: set[int] = set()
    for node in nodes:
        fed = any(id(source) in layered for tensor in node.inputs for source in tensor.inputs)
        if fed or node.domain == "opfuse" or _is_layer(node):
            layered.add(id(node))
    return sorted(nodes, key=lambda node: id(node) in layered)


def _is_layer(node: gs.Node) -> bool:
    if node.op not in _WORK:
        return False
    return any(isinstance(t, gs.Constant) and prod(t.shape) >= _WEIGHT for t in node.inputs)


def _codes(nodes: Sequence[gs.Node], facts: Facts) -> np.ndarray:
    """Return a number for each node, equal for those that compute the same on the same shapes."""
    numbers: dict[str, int] = {}
    codes = []
    for node in nodes:
        shapes = [facts.shape(tensor) for tensor in node.outputs]
        plain = {k: v for k, v in node.attrs.items() if isinstance(v, (int, float, str))}
        text = f"{node.domain}.{node.op}{sorted(plain.items())}{list(map(str, shapes))}"
        codes.append(numbers.setdefault(text, len(numbers)))
    return np.array(codes, np.int64)


def _cuts(nodes: Sequence[gs.Node]) -> np.ndarray:
    """Return for each place between nodes how many results cross it."""
    place = {id(tensor): index for index, node in enumerate(nodes) for tensor in node.outputs}
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for tensor in node.inputs:
            if id(tensor) in place:
                last[id(tensor)] = index
    steps = np.zeros(len(nodes) + 1, np.int64)
    for key, reader in last.items():
        steps[place[key] + 1] += 1
        steps[reader + 1 if reader + 1 <= len(nodes) else len(nodes)] -= 1
    return np.cumsum(steps)


def _longest(codes: np.ndarray, works: np.ndarray, cuts: np.ndarray) -> Stretch | None:
    """Return the repetition that covers most, its first layer where fewest results cross."""
    best: tuple[int, int, Stretch] | None = None
    for length in range(_SHORTEST, len(codes) // 2 + 1):
        start, same = _longest_run(codes[length:] == codes[:-length])
        count = same // length + 1
        if count < 2 or not works[start : start + length].any():
            continue
        covered = count * length
        if best is None or (covered, -length) > best[:2]:
            slack = same % length
            shift = int(np.argmin(cuts[start : start + slack + 1]))
            best = covered, -length, Stretch(start + shift, length, count)
    return None if best is None else best[2]


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Return where the longest run of true begins, and its length."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(np.argmax(lengths))
    return int(edges[2 * longest]), int(lengths[longest])
