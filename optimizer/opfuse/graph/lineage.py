"""Which tensor holds today what a tensor of the user's model held, and which node that was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

_SIZES = ("Shape", "Size")  # what only the size of a tensor is asked of does not depend on it
_SPELT = {"MatMul": "Gemm", "Add": "Gemm"}  # what the normal form writes in parts
_NEARBY = 4  # [..., k] -> [n, k] -> product -> bias -> [..., m] is one product in the normal form


@dataclass(frozen=True)
class UserNode:
    """A node of the user's model as it stood there, whatever has become of it."""

    name: str
    op: str
    domain: str
    attrs: Mapping[str, object]
    inputs: tuple[gs.Tensor, ...]
    outputs: tuple[gs.Tensor, ...]

    @classmethod
    def of(cls, node: gs.Node) -> UserNode:
        """Return what ``node`` is now; one without a name is called after its first output."""
        outputs = tuple(node.outputs)
        name = node.name or (outputs[0].name if outputs else node.op)
        attrs = dict(node.attrs)
        return cls(name, node.op, node.domain or "", attrs, tuple(node.inputs), outputs)

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.name} ({self.op})"


class Lineage:
    """What became of the user's tensors while the graph was rewritten."""

    def __init__(self) -> None:
        # Tensors are kept beside what stands for them: a freed tensor's id would be given again.
        self._successor: dict[int, tuple[gs.Tensor, gs.Tensor]] = {}
        self._model: dict[int, tuple[gs.Tensor, gs.Tensor]] = {}

    def forward(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Note that ``new`` holds from now on what ``old`` held, which is gone."""
        self._successor[id(old)] = old, new

    def derive(self, new: gs.Tensor, like: gs.Tensor) -> None:
        """Note that ``new`` was made on the way to, or from, ``like``."""
        self._model[id(new)] = new, like

    def present(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor that holds today what ``tensor`` held."""
        seen: set[int] = set()
        while id(tensor) in self._successor and id(tensor) not in seen:
            seen.add(id(tensor))
            tensor = self._successor[id(tensor)][1]
        return tensor

    def derived(self) -> Iterator[gs.Tensor]:
        """Yield every tensor that is not of the user's model."""
        return (new for new, _ in self._model.values())

    def like(self, tensor: gs.Tensor) -> gs.Tensor | None:
        """Return the tensor that ``tensor`` was made for, or None."""
        found = self._model.get(id(tensor))
        return None if found is None else found[1]


class UserGraph:
    """The user's model beside the graph that it has become."""

    def __init__(self, nodes: Sequence[UserNode], lineage: Lineage) -> None:
        self.nodes = nodes
        self._lineage = lineage
        self._producer = {id(t): i for i, node in enumerate(nodes) for t in node.outputs}
        self._origins: dict[int, list[gs.Tensor]] = defaultdict(list)
        self._named = {tensor.name: tensor for tensor in lineage.derived()}
        known: set[int] = set()
        for node in nodes:
            for tensor in (*node.inputs, *node.outputs):
                if id(tensor) not in known:
                    known.add(id(tensor))
                    self._named[tensor.name] = tensor
                    self._origins[id(lineage.present(tensor))].append(tensor)

    def present(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor that holds today what the user's ``tensor`` held."""
        return self._lineage.present(tensor)

    def tensor(self, name: str) -> gs.Tensor | None:
        """Return the tensor of this name, the user's or one of ours, or None."""
        return self._named.get(name)

    def producer(self, tensor: gs.Tensor) -> int | None:
        """Return which node of the user's writes ``tensor``; None for inputs and weights."""
        return self._producer.get(id(tensor))

    def origins(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        """Return the user's tensors that ``tensor`` stands for, or those that it was made for."""
        current: gs.Tensor | None = tensor
        for _ in range(64):
            if current is None:
                return []
            found = self._origins.get(id(current)) or self._origins.get(id(self.present(current)))
            if found:
                return found
            current = self._lineage.like(current)
        return []

    def between(self, reads: Iterable[str], writes: Iterable[str]) -> list[int]:
        """Return :meth:`region` of the tensors of these names."""
        ends = [self._named[name] for name in writes if name in self._named]
        return self.region([self._named[name] for name in reads if name in self._named], ends)

    def region(self, reads: Iterable[gs.Tensor], writes: Iterable[gs.Tensor]) -> list[int]:
        """Return the user's nodes between tensors of today's graph, in the order of the model.

        Those are the nodes that ``writes`` depend on and that depend on ``reads`` themselves.
        """
        stop = {id(origin) for tensor in reads for origin in self.origins(tensor)}
        ends = [origin for tensor in writes for origin in self.origins(tensor)]
        found: dict[int, bool] = {}
        pending = [self._producer[id(t)] for t in ends if id(t) in self._producer]
        own = set(pending)
        while pending:
            index = pending.pop()
            if index in found:
                continue
            found[index] = True
            pending += self._sources(index, stop)
        inside: set[int] = set()
        for index in sorted(found):
            inputs = self.nodes[index].inputs
            fed = any(id(t) in stop or self._producer.get(id(t)) in inside for t in inputs)
            if fed or index in own:
                inside.add(index)
        return sorted(inside)

    def _sources(self, index: int, stop: set[int]) -> Iterator[int]:
        if self.nodes[index].op in _SIZES:
            return
        for tensor in self.nodes[index].inputs:
            source = self._producer.get(id(tensor))
            if source is not None and id(tensor) not in stop:
                yield source

    def owner(self, name: str, op: str = "") -> UserNode | None:
        """Return the user's node that tensor ``name`` comes from, if any does.

        Args:
            name: A tensor of today's graph.
            op: The operator that writes it there; a rewritten one is looked for nearby.
        """
        tensor = self._named.get(name)
        sources = [self.producer(t) for t in self.origins(tensor)] if tensor is not None else []
        first = next((index for index in sources if index is not None), None)
        index, wanted = first, {op, _SPELT.get(op, op)}
        for _ in range(_NEARBY):
            if index is None or not op:
                break
            if self.nodes[index].op in wanted:
                return self.nodes[index]
            inputs = (self.producer(tensor) for tensor in self.nodes[index].inputs)
            index = next((source for source in inputs if source is not None), None)
        return None if first is None else self.nodes[first]
