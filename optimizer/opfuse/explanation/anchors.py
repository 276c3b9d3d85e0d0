"""One line for each node of the user's model from which a reader would expect a fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from opfuse.explanation.result import FUSED, NEARLY, NOT, Anchor
from opfuse.explanation.survey import Survey
from opfuse.graph.match import NearMiss

_NORMS = (
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNormalization"),
)
_ACTIVATIONS = ("Erf", "Tanh", "Sigmoid", "Gelu", "Relu", "Swish", "FastGelu", "BiasGelu")
_ATTENTIONS = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_ROTATIONS = ("Cos", "Sin", "RotaryEmbedding")
ANCHORS = frozenset(("Softmax", "ReduceMean", *_NORMS, *_ACTIVATIONS, *_ATTENTIONS, *_ROTATIONS))
FOLLOWS = {"FlashAttention": "qkv_merge", "GatedAct": "gate_up_merge"}
"""Merges that happen where a wider fusion did."""
# What stands between a table of angles and the rotation that reads it, or between a projection and
# the attention behind it.
_CARRIERS = frozenset(
    (
        *("Cast", "Mul", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand"),
        *("Gather", "Slice", "Split", "Identity", "Add", "Sub", "Neg"),
    )
)
_FAR = 12  # carriers between Cos and the first rotation; exporters write at most 6


def anchors(survey: Survey, misses: Sequence[NearMiss]) -> tuple[Anchor, ...]:
    """Return the anchors in the order of the model."""
    finder = _Finder(survey, misses)
    lines = [(index, finder.of_node(index)) for index in finder.expected()]
    lines += list(finder.groups())
    seen: set[tuple[str, str, str]] = set()
    found = []
    for _, anchor in sorted(lines, key=lambda line: line[0]):
        # Two ReduceMeans of one norm, and the three products of a GELU, are one line.
        key = (anchor.op, anchor.kind, anchor.at or anchor.blocker)
        if anchor.op in ("Softmax", *_ATTENTIONS) or not anchor.kind or key not in seen:
            found.append(anchor)
        seen.add(key)
    return tuple(found)


@dataclass
class _Finder:
    """Answers for one model."""

    survey: Survey
    misses: Sequence[NearMiss]

    def __post_init__(self) -> None:
        user = self.survey.user
        self._readers: dict[int, list[int]] = {}
        for index, node in enumerate(user.nodes):
            for tensor in node.inputs:
                self._readers.setdefault(id(tensor), []).append(index)
        self._missed: dict[str, NearMiss] = {}
        for miss in sorted(self.misses, key=lambda miss: -len(set(miss.fitting))):
            for name in (*miss.fitting, miss.blocker):
                self._missed.setdefault(name, miss)

    def expected(self) -> Iterator[int]:
        """Yield every node that is an anchor by its operator."""
        for index, node in enumerate(self.survey.user.nodes):
            if node.op in ANCHORS and self.survey.drawn(node):
                yield index

    def of_node(self, index: int) -> Anchor:
        """Return what became of one node."""
        node = self.survey.user.nodes[index]
        if node.op in ("Cos", "Sin"):
            return self._of_table(index)
        return self._answer(node.name, node.op, [index])

    def _answer(self, name: str, op: str, indices: list[int], kinds: str = "") -> Anchor:
        survey = self.survey
        numbers = sorted({n for index in indices for n in survey.takers.get(index, ())})
        numbers = [n for n in numbers if kinds in survey.matches[n].kind]
        missed = filter(None, (self._miss(index) for index in indices))
        miss = next((miss for miss in missed if kinds in miss.kind), None)
        # Of an attention that was refused, its softmax may have fused: the rest is what is missed.
        partly = miss is not None and miss.kind == "FlashAttention"
        if numbers and not (partly and survey.kind(numbers[-1]) == "MaskedSoftmax"):
            at = survey.matches[numbers[-1]].node
            return Anchor(name, op, FUSED, survey.kind(numbers[-1]), at)
        if miss is not None:
            return Anchor(name, op, NEARLY, miss.kind, "", miss.node, miss.reason, miss.advice)
        now = survey.now(indices[0])
        if now is not None and now.op == op and op in ("LayerNormalization", "Gelu"):
            return Anchor(name, op, FUSED, op, now.name or name)
        return Anchor(name, op, NOT)

    def _miss(self, index: int) -> NearMiss | None:
        for tensor in self.survey.user.nodes[index].outputs:
            for name in (tensor.name, self.survey.user.present(tensor).name):
                if name in self._missed:
                    return self._missed[name]
        return None

    def _of_table(self, index: int) -> Anchor:
        """Return what became of the rotation that reads a table of angles."""
        node = self.survey.user.nodes[index]
        own = self._answer(node.name, node.op, [index])
        if own.status != NOT:
            return own
        return next(self._behind(node.name, node.op, [index], "Rope"), own)

    def _behind(self, name: str, op: str, starts: list[int], kinds: str) -> Iterator[Anchor]:
        """Yield what became of the nodes that read ``starts``, through nodes that carry them."""
        pending, seen = [(index, 0) for index in starts], set(starts)
        while pending:
            at, far = pending.pop(0)
            answer = self._answer(name, op, [at], kinds)
            if at not in starts and answer.status != NOT:
                yield answer
            elif far < _FAR and (at in starts or self.survey.user.nodes[at].op in _CARRIERS):
                later = [r for t in self.survey.user.nodes[at].outputs for r in self._reading(t)]
                pending += [(reader, far + 1) for reader in later if reader not in seen]
                seen.update(later)

    def _reading(self, tensor: gs.Tensor) -> list[int]:
        return self._readers.get(id(tensor), [])

    def groups(self) -> Iterator[tuple[int, Anchor]]:
        """Yield the matrix products with weights that share an input, two or more."""
        found: dict[int, list[int]] = {}
        for index, node in enumerate(self.survey.user.nodes):
            if node.op in ("MatMul", "Gemm") and len(node.inputs) > 1:
                x, weight = (self.survey.user.present(tensor) for tensor in node.inputs[:2])
                if isinstance(weight, gs.Constant) and not isinstance(x, gs.Constant):
                    found.setdefault(id(x), []).append(index)
        for members in found.values():
            if len(members) > 1:
                first = self.survey.user.nodes[members[0]]
                title = f"{first.op} group of {len(members)}"
                yield members[0], self._of_group(first.name, title, members)

    def _of_group(self, name: str, title: str, members: list[int]) -> Anchor:
        """Return what became of products that share an input; merges follow the wider fusions."""
        own = self._answer(name, title, members, "_merge")
        for kind, merge in FOLLOWS.items() if own.status == NOT else ():
            wider = next(self._behind(name, title, members, kind), own)
            if wider.status == NEARLY:
                reason = f"its {kind} is not fused: {wider.reason}"
                return replace(wider, kind=merge, reason=reason)
        return own
