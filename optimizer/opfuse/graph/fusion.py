"""What a fusion is, what it sees of a match, and how one is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import onnx_graphsurgeon as gs

from opfuse.graph import advice, edit
from opfuse.graph.facts import Shape
from opfuse.graph.pattern import Bindings, Fit, Matcher, Op, Pattern
from opfuse.graph.work import Decline, Miss, NewNode, Work

__all__ = ["Decline", "Found", "Fusion", "Miss", "NewNode", "Replacement", "Work"]

_ATTEMPTS = 16  # readings of one candidate: with a Cast or a scale inside the match, or outside


@dataclass(frozen=True)
class Replacement:
    """What a match becomes.

    ``also`` are nodes behind the pattern that it takes in. ``shared`` are matched nodes that may
    stay for other matches of their kind, which read them as well.
    """

    nodes: Sequence[NewNode]
    also: Sequence[gs.Node] = ()
    shared: Sequence[gs.Node] = ()


@dataclass(frozen=True)
class Found:
    """One match: what its variables and operators are bound to."""

    work: Work
    bindings: Bindings
    anchor: gs.Node

    def __getitem__(self, name: str) -> gs.Tensor:
        tensor = self.bindings[name]
        assert isinstance(tensor, gs.Tensor)
        return tensor

    def has(self, name: object) -> bool:
        """Tell whether the matched alternatives bound ``name`` (a variable or an operator)."""
        return name in self.bindings

    def label(self, name: str) -> str:
        """Return the label of the alternative that matched in ``one_of(name, ...)``."""
        return str(self.bindings[name])

    def node(self, pattern: Op) -> gs.Node:
        """Return the node that ``pattern`` matched."""
        node = self.bindings[pattern]
        assert isinstance(node, gs.Node)
        return node

    @property
    def nodes(self) -> list[gs.Node]:
        """The matched nodes, in no particular order."""
        return [node for key, node in self.bindings.items() if isinstance(key, Op)]

    def reader(self, tensor: gs.Tensor) -> gs.Node:
        """Return the matched node that reads ``tensor``: whom to blame for what it holds."""
        readers = (node for node in self.nodes if any(part is tensor for part in node.inputs))
        return next(readers, self.anchor)

    def shape(self, name: str) -> Shape:
        """Return the shape of variable ``name``.

        Raises:
            Miss: Its rank is not known.
        """
        shape = self.work.shape(self[name])
        if shape is None:
            raise Miss(f"the rank of {self[name].name} is not known", edit.producer(self[name]))
        return shape

    def scalar(self, name: str) -> float:
        """Return the one value of constant ``name``.

        Raises:
            Miss: It has more than one.
        """
        tensor = self[name]
        values = self.work.facts.value(tensor)
        if values is None or values.size != 1:
            raise Miss(f"{tensor.name} is not a scalar constant", self.reader(tensor))
        return float(values.reshape(-1)[0])


@dataclass(frozen=True, eq=False)
class Fusion:
    """One room: the expression that it looks for and what it becomes.

    Attributes:
        kind: The report's key.
        anchors: Operator types of the last node of ``pattern``, in the order of trying.
        pattern: The expression of the first output of the anchor.
        build: From a match to the new nodes; raises Miss where a guard says no.
        near: Operators of the pattern that must be there before a miss is worth a line.
        domain: The anchor's domain.
        key: Operators, any one of which a partial fit must have to be worth a line, as "A|B".
    """

    kind: str
    anchors: tuple[str, ...]
    pattern: Pattern
    build: Callable[[Found], Replacement]
    near: int = 3
    domain: str = ""
    key: str = ""

    def run(self, work: Work) -> None:
        """Apply this fusion wherever it fits, and note where it nearly does."""
        matcher = Matcher(self.pattern)
        for types in self.anchors:
            for anchor in work.nodes((types,), self.domain):
                if work.alive(anchor) and anchor.outputs and self._try(work, matcher, anchor):
                    matcher.forget()

    def _try(self, work: Work, matcher: Matcher, anchor: gs.Node) -> bool:
        first, fit = matcher.find(anchor.outputs[0])
        if first is None:
            self._note(work, matcher, anchor, fit)
            return False
        refusals: list[Miss | Decline] = []
        for bindings in islice(matcher.every(anchor.outputs[0]), _ATTEMPTS):
            found = Found(work, bindings, anchor)
            try:
                made = self.build(found)
                taken = [*found.nodes, *made.also]
                work.replace(self.kind, anchor, taken, made.nodes, made.shared)
            except (Miss, Decline) as refusal:
                refusals.append(refusal)
            else:
                return True
        if isinstance(refusals[0], Miss):
            work.miss(self.kind, anchor, refusals[0], Found(work, first, anchor).nodes)
        return False

    def _note(self, work: Work, matcher: Matcher, anchor: gs.Node, fit: Fit) -> None:
        if fit.size < self.near or fit.blocker is None:
            return
        fitting = matcher.fitting(anchor.outputs[0])
        if self.key and not {node.op for node in fitting} & set(self.key.split("|")):
            return
        blocker = edit.producer(fit.blocker)
        hint = advice.of_mismatch(blocker.op if blocker else "", fit.reason)
        miss = Miss(f"{fit.blocker.name} {fit.reason}", blocker, hint)
        work.miss(self.kind, anchor, miss, fitting)
