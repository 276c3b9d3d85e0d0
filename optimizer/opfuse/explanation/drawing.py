"""Each stretch of the model as two pictures: the user's nodes, and what stands there now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from opfuse.explanation.layers import Stretch, cut, in_order
from opfuse.explanation.layout import Box, Picture, lay_out
from opfuse.explanation.result import Block
from opfuse.explanation.roofline import Operator
from opfuse.explanation.survey import Survey
from opfuse.graph.lineage import UserNode
from opfuse.graph.match import NearMiss

STYLES = {
    "FlashAttention": "attention",
    "PackedAttention": "attention",
    "MaskedSoftmax": "attention",
    "RmsNorm": "norm",
    "AddRmsNorm": "norm",
    "AddLayerNorm": "norm",
    "LayerNormalization": "norm",
    "GroupNormSilu": "norm",
    "Rope": "rope",
    "QkNormRope": "rope",
    "GatedAct": "gate",
    "GatedGemm": "gate",
    "GemmAct": "gemm",
    "Gelu": "gemm",
    "qkv_merge": "merge",
    "gate_up_merge": "merge",
    "last_token_gather": "merge",
}
MOST_DRAWN = 240  # boxes; more is neither readable nor quick to lay out
_LABEL, _DETAIL = 15, 18  # characters that fit a box


class Drawing:
    """Draws one model."""

    def __init__(self, survey: Survey, misses: Sequence[NearMiss]) -> None:
        self._survey = survey
        self._nodes = in_order(survey.graph.nodes)
        self._marks: dict[str, str] = {}
        for number, miss in enumerate(misses, 1):
            self._marks.setdefault(miss.node, str(number))

    def blocks(self) -> Iterator[Block]:
        """Yield a pair of pictures for each stretch; of a repeating one its first run."""
        stretches = cut(self._nodes, self._survey.facts)
        starts = [s.start + s.length * n for s in stretches for n in range(s.count)]
        part_of = {n.name: bisect_right(starts, i) - 1 for i, n in enumerate(self._nodes)}
        members: dict[int, list[int]] = {}
        for index, part in enumerate(self._places(part_of)):
            members.setdefault(part, []).append(index)
        for stretch, title in zip(stretches, _titles(stretches), strict=True):
            first = self._nodes[stretch.start : stretch.start + stretch.length]
            after = self._after(first)
            before = self._before(members.get(bisect_right(starts, stretch.start) - 1, []))
            if before.nodes or after.nodes:
                yield Block(title, stretch.count, before, after)

    def _places(self, part_of: Mapping[str, int]) -> list[int]:
        """Return for each of the user's nodes the part that it belongs to, or -1."""
        survey = self._survey
        found = [-1] * len(survey.user.nodes)
        for index in range(len(found)):
            node = survey.now(index)
            if index in survey.takers:
                match = survey.matches[survey.takers[index][-1]]
                found[index] = part_of.get(match.node, -1)
            elif node is not None:
                found[index] = part_of.get(node.name, -1)
        for index in reversed(range(len(found))):
            for tensor in survey.user.nodes[index].inputs:
                source = survey.user.producer(tensor)
                if source is not None and found[source] < 0:
                    found[source] = found[index]
        return found

    def _before(self, indices: Sequence[int]) -> Picture:
        nodes = [self._survey.user.nodes[i] for i in indices]
        numbers = {id(node): i for node, i in zip(nodes, indices, strict=True)}

        def box(node: UserNode) -> Box:
            taken = self._survey.takers.get(numbers[id(node)], ())
            style = self._style(node.op, self._survey.kind(taken[-1])) if taken else ""
            return _box(node.op, node.name, style, self._marks.get(node.label, ""))

        return self._picture(nodes, box)

    def _after(self, nodes: Sequence[gs.Node]) -> Picture:
        def box(node: gs.Node) -> Box:
            maker, now = self._survey.maker(node), self._survey.user.owner(_first(node), node.op)
            style = STYLES.get(node.op, "")
            if maker is not None:
                style = self._style(node.op, self._survey.kind(maker))
            name = now.name if now is not None else node.name
            if maker is not None:
                name = self._survey.matches[maker].anchor
            mark = self._marks.get(now.label, "") if now is not None else ""
            return _box(node.op, name, style, mark)

        return self._picture(nodes, box)

    def _style(self, op: str, kind: str) -> str:
        if op in ("MatMul", "Gemm", "Add", "Split") and "_merge" in kind:
            return "merge"
        return STYLES.get(kind.split(" + ")[0], "other")

    def _picture(self, nodes: Sequence[Operator], box: Callable[..., Box]) -> Picture:
        drawn = [node for node in nodes if self._survey.drawn(node)]
        if len(drawn) > MOST_DRAWN:
            return Picture(nodes=len(drawn), hidden=True)
        inner = {id(tensor) for node in drawn for tensor in node.outputs}
        entering = {
            id(tensor): tensor
            for node in drawn
            for tensor in node.inputs
            if self._enters(tensor) and id(tensor) not in inner
        }
        boxes = [_box("", tensor.name, "entry") for tensor in entering.values()]
        boxes += [box(node) for node in drawn]
        place = {key: index for index, key in enumerate(entering)}
        place |= {id(t): len(entering) + i for i, n in enumerate(drawn) for t in n.outputs}
        edges = [
            (place[id(tensor)], len(entering) + index)
            for index, node in enumerate(drawn)
            for tensor in node.inputs
            if id(tensor) in place
        ]
        return lay_out(boxes, edges)

    def _enters(self, tensor: gs.Tensor) -> bool:
        weight = isinstance(self._survey.user.present(tensor), gs.Constant)
        return bool(tensor.name) and not weight and not self._survey.on_host(tensor)


def _first(node: gs.Node) -> str:
    return node.outputs[0].name if node.outputs else ""


def _box(label: str, name: str, style: str, mark: str = "") -> Box:
    detail = name if len(name) <= _DETAIL else "…" + name[1 - _DETAIL :]
    title = f"{label}: {name}" if label else name
    short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
    return Box(short, detail, title, style, mark)


def _titles(stretches: Sequence[Stretch]) -> list[str]:
    """Return what each stretch is called: layers are numbered through the model."""
    titles, layer = [], 0
    repeating = [i for i, stretch in enumerate(stretches) if stretch.count > 1]
    for index, stretch in enumerate(stretches):
        if stretch.count > 1:
            last = layer + stretch.count - 1
            titles.append(f"layers {layer} to {last}, {stretch.count} times the same")
            layer = last + 1
        elif not repeating:
            titles.append("the whole model")
        elif index < repeating[0]:
            titles.append("before the layers")
        else:
            titles.append("after the layers" if index > repeating[-1] else "between the layers")
    return titles
