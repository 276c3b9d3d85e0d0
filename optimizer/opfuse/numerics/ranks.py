"""Runs all ranks of a sharded model on one machine, in step, with their collectives between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto
from onnx.helper import get_attribute_value, make_empty_tensor_value_info, make_graph, make_model
from onnx.inliner import inline_selected_functions

from opfuse import child
from opfuse.graph.collectives import ALL_GATHER, COLLECTIVES, DOMAIN, WITH_NORM
from opfuse.graph.protos import reads
from opfuse.numerics.chunks import LIMIT, Chunked
from opfuse.numerics.compare import Array, tolerance
from opfuse.numerics.session import CannotRun
from opfuse.numerics.shares import Parts, given, joined
from opfuse.numerics.whole import Comparison, Loaded, Subject, judge


@dataclass(frozen=True)
class Step:
    """What the ranks do by themselves, and the exchanges that end it."""

    nodes: list[NodeProto]
    exchanges: list[NodeProto]


def compare_ranks(
    original: Subject,
    ranks: Sequence[Subject],
    parts: Parts,
    seed: int,
    rtol: float | None,
    shapes: Mapping[str, tuple[int, ...]],
    limit: int = LIMIT,
) -> Comparison:
    """Run the original and all ranks on the same inputs, made for the original, and compare.

    Args:
        original: The model that was sharded.
        ranks: The file of each rank.
        parts: The inputs and outputs of the ranks that are parts of the original's.
        seed: Of the inputs.
        rtol: Largest relative error; None takes the one of the coarsest type.
        shapes: Sizes of inputs, where they are not ours to choose.
        limit: Bytes of weights that are in memory at a time.
    """
    child.emit({"model": "original", "text": "the original model"})
    try:
        first = Loaded(original, limit)
        runs = first.run_somehow(seed, shapes)
    except (CannotRun, ValueError) as reason:
        return Comparison({}, 0.0, not_run=str(reason))
    child.emit({"model": "fused", "text": f"{len(ranks)} ranks"})
    allowed = rtol if rtol is not None else tolerance(first.elements)
    try:
        second = Ranks(ranks, parts, limit)
        results = [second.run(feeds) for feeds, _ in runs]
    except CannotRun as reason:
        return Comparison({}, allowed, refused=str(reason))
    return judge(original, first, runs, results, allowed, limit)


class Ranks:
    """All ranks of a model, ready to run.

    Raises:
        CannotRun: From the constructor and every run: they are no ranks of one model.
    """

    def __init__(self, ranks: Sequence[Subject], parts: Parts, limit: int = LIMIT) -> None:
        self._ranks = [Loaded(rank, limit) for rank in ranks]
        for loaded in self._ranks:
            _write_out(loaded.model)
        self._parts = parts
        self._limit = limit
        self._steps = [_steps(rank.graph.node) for rank in self._ranks]
        if any(_outline(steps) != _outline(self._steps[0]) for steps in self._steps):
            raise CannotRun("the ranks are not of one model: their nodes differ")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the model, put together where they are in parts."""
        live = [given(feeds, self._parts, rank) for rank in range(len(self._ranks))]
        last = _last_uses(self._steps[0], self._ranks[0].outputs)
        for number, step in enumerate(self._steps[0]):
            for rank, values in enumerate(live):
                values.update(self._compute(rank, number, values, last))
            for node in step.exchanges:
                result = _exchange(node, [values[node.input[0]] for values in live])
                for values in live:
                    values[node.output[0]] = result
            for values in live:
                for name in [name for name in values if last.get(name, -1) <= number]:
                    del values[name]
        return {name: self._whole(name, live) for name in self._ranks[0].outputs}

    def _compute(
        self, rank: int, number: int, live: Mapping[str, Array], last: Mapping[str, int]
    ) -> dict[str, Array]:
        """What one rank makes in one step and somebody needs behind it."""
        loaded, step = self._ranks[rank], self._steps[rank][number]
        made = [name for node in step.nodes for name in node.output]
        sent = {name for node in step.exchanges for name in node.input}
        wanted = [name for name in made if name in sent or last.get(name, -1) > number]
        if not wanted:
            return {}
        graph = make_graph(step.nodes, "step", [], [*map(make_empty_tensor_value_info, wanted)])
        model = make_model(
            graph,
            ir_version=loaded.model.ir_version,
            opset_imports=loaded.model.opset_import,
            functions=loaded.model.functions,
        )
        return Chunked(model, loaded.weights, self._limit).run(live)

    def _whole(self, name: str, live: Sequence[Mapping[str, Array]]) -> Array:
        values = [
            rank[name] if name in rank else loaded.weights[name].array()
            for rank, loaded in zip(live, self._ranks, strict=True)
        ]
        if name not in self._parts:
            if not all(np.array_equal(value, values[0], equal_nan=True) for value in values[1:]):
                raise CannotRun(f"the ranks do not agree on output {name!r}")
            return values[0]
        return joined(name, values, self._parts)


def _write_out(model: ModelProto) -> None:
    """Put the body of every fused op that holds a collective in its place."""
    name = (DOMAIN, WITH_NORM)
    if all((function.domain, function.name) != name for function in model.functions):
        return
    written = inline_selected_functions(model, [name])
    for field in ("node", "value_info"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(written.graph, field))
    model.ClearField("functions")
    model.functions.extend(f for f in written.functions if (f.domain, f.name) != name)


def _steps(nodes: Sequence[NodeProto]) -> list[Step]:
    """The nodes by how many exchanges stand in front of them, at most."""
    level: dict[str, int] = defaultdict(int)
    steps: dict[int, Step] = defaultdict(lambda: Step([], []))
    for node in nodes:
        own = max((level[name] for name in reads([node])), default=0)
        is_exchange = node.domain == DOMAIN and node.op_type in COLLECTIVES
        (steps[own].exchanges if is_exchange else steps[own].nodes).append(node)
        for name in node.output:
            level[name] = own + is_exchange
    return [steps[number] for number in range(max(steps, default=-1) + 1)]


def _outline(steps: Sequence[Step]) -> list[object]:
    """What has to be the same on all ranks."""
    return [
        (node.op_type, list(node.input), list(node.output))
        for step in steps
        for node in (*step.nodes, *step.exchanges)
    ]


def _last_uses(steps: Sequence[Step], outputs: Sequence[str]) -> dict[str, int]:
    """The last step that reads each value; outputs are read behind the last."""
    last = {
        name: number
        for number, step in enumerate(steps)
        for name in reads([*step.nodes, *step.exchanges])
    }
    return {**last, **dict.fromkeys(outputs, len(steps))}


def _exchange(node: NodeProto, values: Sequence[Array]) -> Array:
    """What a collective gives every rank; sums are made in double."""
    attrs = {item.name: get_attribute_value(item) for item in node.attribute}
    if attrs.get("group_size") != len(values):
        raise CannotRun(f"a collective of {attrs.get('group_size')} runs on {len(values)} ranks")
    if node.op_type == ALL_GATHER:
        return np.concatenate(values, int(attrs["axis"]))
    total: Array = np.sum([value.astype(np.float64) for value in values], axis=0)
    return total.astype(values[0].dtype)
