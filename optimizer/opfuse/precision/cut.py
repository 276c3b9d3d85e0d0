"""The cheapest split of a graph in two: a minimum cut, by Dinic's algorithm (1970)."""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 60


class Network:
    """Vertices with directed capacities between them; the cut with the least sum is found."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = []  # by vertex, indices of its edges
        self._target: list[int] = []
        self._left: list[int] = []  # capacity that is left; edge i and i ^ 1 are opposite

    def vertex(self) -> int:
        """Add a vertex."""
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, source: int, target: int, capacity: int) -> None:
        """Let it cost ``capacity`` if ``source`` ends in the first part, ``target`` not."""
        for start, end, left in ((source, target, capacity), (target, source, 0)):
            self._edges[start].append(len(self._target))
            self._target.append(end)
            self._left.append(left)

    def cut(self, source: int, sink: int) -> set[int]:
        """Return the first part of the cheapest cut: ``source`` is in it, ``sink`` is not."""
        while True:
            depth = self._depths(source)
            if depth[sink] < 0:
                return {vertex for vertex, d in enumerate(depth) if d >= 0}
            following = [0] * len(self._edges)
            while self._push(source, sink, depth, following):
                pass

    def _depths(self, source: int) -> list[int]:
        depth = [-1] * len(self._edges)
        depth[source] = 0
        pending = deque([source])
        while pending:
            vertex = pending.popleft()
            for edge in self._edges[vertex]:
                target = self._target[edge]
                if self._left[edge] and depth[target] < 0:
                    depth[target] = depth[vertex] + 1
                    pending.append(target)
        return depth

    def _push(self, source: int, sink: int, depth: list[int], following: list[int]) -> int:
        """Send what fits along one path of growing depth; return how much, 0 where there is none.

        ``following`` is, by vertex, its first edge that is not yet known to lead nowhere.
        """
        path: list[int] = []
        vertex = source
        while vertex != sink:
            edges = self._edges[vertex]
            while following[vertex] < len(edges):
                edge = edges[following[vertex]]
                target = self._target[edge]
                if self._left[edge] and depth[target] == depth[vertex] + 1:
                    break
                following[vertex] += 1
            if following[vertex] < len(edges):
                path.append(edges[following[vertex]])
                vertex = self._target[path[-1]]
            elif not path:
                return 0
            else:
                vertex = self._target[path.pop() ^ 1]
                following[vertex] += 1
        amount = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= amount
            self._left[edge ^ 1] += amount
        return amount
