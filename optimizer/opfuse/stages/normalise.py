"""Source -> gs.Graph in normal form: one spelling for what exporters write in many ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx.inliner import inline_selected_functions
from onnx_graphsurgeon.ir.tensor import LazyValues

from opfuse.errors import InputError
from opfuse.fusions import DEFINITIONS
from opfuse.graph import (
    attention_op,
    edit,
    folding,
    microsoft,
    rotary_op,
    simplify,
    surgeon,
    weights,
)
from opfuse.graph.branches import take_branches
from opfuse.graph.definition import Uses
from opfuse.graph.equal_sizes import equal_sizes
from opfuse.graph.facts import Facts
from opfuse.graph.lineage import UserNode
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.protos import all_nodes, opset_of
from opfuse.graph.reroot import reroot
from opfuse.graph.rewriter import Rewriter, Rule
from opfuse.graph.shapes import begin
from opfuse.stages.load import Source

OLDEST = 17  # what the fused ops' definitions need
_SWEEPS = 4  # a second finds what the first uncovered; more are rare
_SMALL = 1 << 16  # bytes of an external tensor that is read at once


@dataclass(frozen=True)
class Normal:
    """A sorted graph in normal form with what is known of its tensors.

    ``user`` are the nodes of the model as they stood before; ``foreign`` are those of another
    domain that were left as they are, though others of their kind are understood.
    """

    graph: gs.Graph
    facts: Facts
    base_dir: Path
    user: tuple[UserNode, ...]
    foreign: tuple[microsoft.Left, ...] = ()


def normalise(source: Source) -> Normal:
    """Return the model in normal form; large weights stay where they are."""
    graph = surgeon.read(_inlined(source))
    graph.producer_name = "opfuse"
    # Its own entries: gs shares them with the source, which the proof runs as it is.
    graph.import_domains = [
        onnx.helper.make_opsetid(entry.domain, entry.version) for entry in graph.import_domains
    ]
    _read_small_weights(graph, source)
    _raise_opset(graph)
    edit.sort(graph)
    user = tuple(map(UserNode.of, graph.nodes))
    rules = {op: (*found, folding.known) for op, found in simplify.RULES.items()}
    rules["Constant"] = (folding.constant_node,)
    rules["Attention"] = (attention_op.apart,)
    rules["RotaryEmbedding"] = (rotary_op.apart,)
    foreign = microsoft.Microsoft()
    rules |= foreign.rules
    facts = begin(graph)
    for sweep in range(_SWEEPS):
        rewriter = Rewriter(graph, facts, source.base_dir)
        everywhere = (folding.known, folding.computable, folding.of_copies, folding.Common())
        rewriter.run(rules, everywhere)
        edit.sweep(graph)
        equal = equal_sizes(graph, facts) if sweep == 0 else {}
        branched = take_branches(graph, facts)
        if equal or branched:  # what stands behind a branch is known better now
            facts.equate(equal, graph.inputs)
        elif not rewriter.changed:
            break
    if reroot(graph, facts):
        clean(graph, facts)
    return Normal(graph, facts, source.base_dir, user, foreign.left())


def clean(graph: gs.Graph, facts: Facts) -> None:
    """Do equal computations once and drop what nothing needs."""
    everywhere: tuple[Rule, ...] = (folding.Common(),)
    Rewriter(graph, facts).run({}, everywhere)
    edit.sweep(graph)
    edit.sort(graph)


def _inlined(source: Source) -> onnx.ModelProto:
    """Return the model with its local functions written out; fused ops of our own stay."""
    model = source.proto
    foreign = [(f.domain, f.name) for f in model.functions if not _is_ours(f, model)]
    if not foreign:
        return model
    try:
        inlined: onnx.ModelProto = inline_selected_functions(model, foreign)
    except RuntimeError as error:
        raise InputError(
            f"{source.path}: its local functions cannot be written out: {error}",
            "export the model and its functions for one opset",
        ) from None
    return inlined


def _is_ours(function: onnx.FunctionProto, model: onnx.ModelProto) -> bool:
    """Tell whether this is the very definition of a fused op: export writes that for its calls.

    Another release, or another hand, may have given our name another body.
    """
    definition = DEFINITIONS.get(function.name) if function.domain == OPFUSE else None
    if definition is None:
        return False
    calls = [
        _Call(node.input, {a.name: _value(a) for a in node.attribute})
        for node in all_nodes(model.graph.node)
        if (node.domain, node.op_type) == (function.domain, function.name)
    ]
    opset = opset_of(model, OLDEST)
    try:
        return bool(calls) and definition.function(Uses(opset, calls)) == function
    except (KeyError, TypeError, ValueError, onnx.parser.ParseError):  # of attributes not ours
        return False


def _value(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@dataclass(frozen=True)
class _Call:
    """A call of a function in a protobuf, as :class:`Uses` want it."""

    inputs: Sequence[Any]
    attrs: Mapping[str, object]


def _read_small_weights(graph: gs.Graph, source: Source) -> None:
    for tensor in graph.tensors().values():
        values = getattr(tensor, "_values", None)
        if not isinstance(values, LazyValues) or not weights.is_external(values.tensor):
            continue
        if values.nbytes <= _SMALL:
            tensor.values = weights.load(tensor, source.base_dir)
            tensor.data_location = None


def _raise_opset(graph: gs.Graph) -> None:
    """Import opset 17 for an older model, whose operators mean the same there (Changelog.md).

    Two do not: RoiAlign has another default from 16 on, and BatchNormalization had other outputs
    for training before 14; a model that uses them keeps its opset and is not fused.
    """
    if graph.opset >= OLDEST:
        return
    nodes = list(edit.every_node(graph))
    if any(node.op == "BatchNormalization" and len(node.outputs) > 1 for node in nodes):
        return
    for node in nodes:
        if node.op == "RoiAlign" and edit.is_standard(node) and graph.opset < 16:
            node.attrs.setdefault("coordinate_transformation_mode", "output_half_pixel")
    graph.opset = OLDEST
    for entry in graph.import_domains:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OLDEST
