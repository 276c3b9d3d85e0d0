"""Graph in normal form -> fused graph, what matched, and what nearly did."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from opfuse.fusions import DEFINITIONS, FUSIONS, MERGES, STANDARD, WIDENINGS, all_reduce_add_norm
from opfuse.graph import control_flow, surgeon
from opfuse.graph.collectives import rank_of, state
from opfuse.graph.definition import VERSION, Uses
from opfuse.graph.facts import Facts
from opfuse.graph.fusion import Miss, Work
from opfuse.graph.lineage import UserGraph
from opfuse.graph.match import Match, NearMiss
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.shapes import analyse
from opfuse.graph.weights import DerivedValues
from opfuse.stages.load import Source
from opfuse.stages.normalise import OLDEST, Normal, clean

_INSIDE = {"MaskedSoftmax": "FlashAttention"}  # kinds that are a part of another
_IR_VERSION = 8  # the first with model-local functions (onnx/docs/IR.md)


@dataclass(frozen=True)
class Fused:
    """A fused graph with its record.

    ``counts`` holds for each kind how many stand in the graph: fused ops and recognised standard
    operators by their nodes, merges by what was merged. ``user`` and ``facts`` are those of the
    graph in normal form.
    """

    graph: gs.Graph
    matches: tuple[Match, ...]
    misses: tuple[NearMiss, ...]
    counts: Mapping[str, int]
    user: UserGraph
    facts: Facts


def fuse(normal: Normal, vetoes: Mapping[str, str] | None = None) -> Fused:
    """Apply every fusion in order; none to a model whose opset could not be raised.

    Args:
        normal: A graph in normal form; it is changed.
        vetoes: Signatures of matches that a proof has refuted, with the reason.
    """
    graph = normal.graph
    work = Work(graph, normal.facts, normal.base_dir, _define_one, vetoes or {})
    for stayed in normal.foreign:
        advice = "give opfuse the model from before onnxruntime's optimizer"
        work.miss(stayed.kind, stayed.node, Miss(stayed.reason, stayed.node, advice))
    for fusion in FUSIONS if work.opset >= OLDEST else ():
        fusion.run(work)
    work.finish()
    control_flow.tell(work)
    _unify(graph, normal.facts)
    clean(graph, normal.facts)
    standing = {node.name or node.outputs[0].name for node in graph.nodes}
    user = UserGraph(normal.user, normal.facts.lineage)
    written = {tensor.name for node in graph.nodes for tensor in node.outputs}
    left = [m for m in work.misses if m.anchor in standing and not _is_settled(m, written)]
    misses = tuple(_miss_of_user(user, miss) for miss in _widest(left))
    matches = tuple(_match_of_user(user, match) for match in work.matches)
    counts = _counts(graph, work.matches)
    return Fused(graph, matches, misses, counts, user, normal.facts)


def widen(fused: Fused, ops: Collection[str], base_dir: Path) -> Fused:
    """Take fused nodes together where the plugin library has one op for them.

    The counts of what the model is made of stay; those of the wider ops come beside them.

    Args:
        fused: A fused graph; it is changed.
        ops: The ops of the library.
        base_dir: The folder that external weights are relative to.
    """
    graph, user = fused.graph, fused.user
    work = Work(graph, fused.facts, base_dir, _define_one)
    wider = [fusion for fusion in WIDENINGS if fusion.kind in ops]
    for fusion in wider:
        fusion.run(work)
    work.finish()
    _unify(graph, fused.facts)
    if work.matches:  # what nodes of several layers read alike was made for each
        clean(graph, fused.facts)
    matches = (*fused.matches, *(_match_of_user(user, match) for match in work.matches))
    misses = (*fused.misses, *(_miss_of_user(user, miss) for miss in work.misses))
    made = {
        f.kind: sum(match.kind == f.kind for match in work.matches)
        for f in wider
        if f.kind not in fused.counts
    }
    return replace(fused, matches=matches, misses=misses, counts={**fused.counts, **made})


def fuse_sums(fused: Fused, base_dir: Path) -> Fused:
    """Take the sums over the ranks of a graph that was cut together with the norms behind them.

    Args:
        fused: A graph that stages/shard has cut; it is changed.
        base_dir: The folder that external weights are relative to.
    """
    graph = fused.graph
    facts = analyse(graph)
    work = Work(graph, facts, base_dir, _define_one)
    all_reduce_add_norm.FUSION.run(work)
    work.finish()
    _unify(graph, facts)
    misses = [miss for miss in work.misses if miss.kind == all_reduce_add_norm.FUSION.kind]
    return replace(fused, misses=tuple(misses), facts=facts)


def _unify(graph: gs.Graph, facts: Facts) -> None:
    """Make the nodes of each op alike, which have one definition."""
    for op, definition in DEFINITIONS.items():
        nodes = [node for node in graph.nodes if node.op == op and node.domain == OPFUSE]
        if nodes and definition.unify is not None:
            definition.unify(graph, nodes, facts)


def _is_settled(miss: NearMiss, written: set[str]) -> bool:
    """Tell whether what has no mean taken off, and is no LayerNorm, became the norm that it is."""
    centres = miss.kind != "LayerNormalization" or not miss.reason.endswith("want ReduceMean")
    return not centres and not written.issuperset(miss.fitting)


def _widest(misses: list[NearMiss]) -> Iterator[NearMiss]:
    """Yield the misses that are no part of another candidate for the same, or for a wider kind."""
    around: dict[tuple[str, str], list[set[str]]] = {}
    for miss in misses:
        for name in set(miss.fitting):
            around.setdefault((miss.kind, name), []).append(set(miss.fitting))
    for miss in misses:
        own, kind = set(miss.fitting), _INSIDE.get(miss.kind, "")
        wider = any((kind, name) in around for name in own)
        if not wider and not any(own < other for other in around[miss.kind, miss.fitting[0]]):
            yield miss


def _miss_of_user(user: UserGraph, miss: NearMiss) -> NearMiss:
    """Return ``miss`` with the names that the user's model has for its nodes."""
    op = miss.node.rpartition(" (")[2].rstrip(")")
    blocker, anchor = user.owner(miss.blocker, op), user.owner(miss.fitting[0])
    return replace(
        miss,
        node=blocker.label if blocker else miss.node,
        anchor=anchor.name if anchor else miss.anchor,
    )


def _match_of_user(user: UserGraph, match: Match) -> Match:
    """Return ``match`` with the name that the user's model has for what it writes."""
    owners = [owner for name in match.writes if (owner := user.owner(name)) is not None]
    if not owners or any(owner.name == match.anchor for owner in owners):
        return match
    # A norm's sum comes before its result; of merged layers the first speaks for all.
    return replace(match, anchor=owners[0 if match.kind in MERGES else -1].name)


def _define_one(op: str, uses: Uses) -> onnx.FunctionProto:
    return DEFINITIONS[op].function(uses)


def _counts(graph: gs.Graph, matches: list[Match]) -> dict[str, int]:
    counts = dict.fromkeys((*DEFINITIONS, *STANDARD, *MERGES), 0)
    for kind in {fusion.kind for fusion in WIDENINGS} - {fusion.kind for fusion in FUSIONS}:
        del counts[kind]
    for node in graph.nodes:
        fused = node.domain == OPFUSE and node.op in counts
        if fused or (node.op in STANDARD and not node.domain):
            counts[node.op] += 1
    for match in matches:
        if match.kind in MERGES:
            counts[match.kind] += 1
    return counts


def export(fused: Fused, source: Source) -> onnx.ModelProto:
    """Return the fused model; external weights still point at the source's files."""
    graph = fused.graph
    _settle_weights(graph, any(t.external_data for t in source.proto.graph.initializer))
    model = surgeon.written(graph)
    model.ir_version = max(source.proto.ir_version, _IR_VERSION)
    _define(model, graph)
    if (rank := rank_of(source.proto)) is not None:
        state(model, rank)
    return model


def _settle_weights(graph: gs.Graph, external: bool) -> None:
    """Compute merged weights, unless the model's weights lie in files: then they are streamed."""
    for tensor in graph.tensors().values():
        values = getattr(tensor, "_values", None)
        if isinstance(values, DerivedValues) and (not external or values.nbytes < 1 << 16):
            tensor.values = values.load()


def _define(model: onnx.ModelProto, graph: gs.Graph) -> None:
    used = {op: [n for n in graph.nodes if n.op == op and n.domain == OPFUSE] for op in DEFINITIONS}
    kept = [f for f in model.functions if f.domain != OPFUSE]
    del model.functions[:]
    model.functions.extend(kept)
    for op, nodes in used.items():
        if nodes:
            model.functions.append(DEFINITIONS[op].function(Uses(int(graph.opset), nodes)))
    if not any(entry.domain == OPFUSE for entry in model.opset_import) and any(used.values()):
        model.opset_import.append(onnx.helper.make_opsetid(OPFUSE, VERSION))
