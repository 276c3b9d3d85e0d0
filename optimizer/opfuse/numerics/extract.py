"""Makes the prover's case of a match: two small models, and weights that need no reading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto
from onnx.helper import make_empty_tensor_value_info, make_graph, make_model

from opfuse.graph.match import Match, Subgraph, TensorSpec
from opfuse.graph.protos import unsized
from opfuse.graph.weights import ConcatValues
from opfuse.numerics import stored
from opfuse.numerics.alone import stand_in
from opfuse.numerics.case import Case, Weight
from opfuse.numerics.compare import FLOATS
from opfuse.numerics.stored import InMemory, Joined, Stored

LARGE = 4 << 20  # bytes above which a weight is never read, only imitated
BUDGET = 192 << 20  # bytes of the weights of one case, so that the proof stays in its memory
_SCALAR = 8  # elements up to which a constant is part of the computation, not a weight


class CannotProve(Exception):
    """A match that cannot be run alone; the text says why."""


class TooLarge(CannotProve):
    """Its weights would take too much memory; the whole model's run, in pieces, covers it."""


def build(match: Match, model: ModelProto, base_dir: Path) -> Case:
    """Make the two models of ``match``.

    Args:
        match: What to prove.
        model: Its opsets and IR version hold for both.
        base_dir: The folder that external weights are relative to.

    Raises:
        CannotProve: A shape is unknown, or the fused form reads what the original does not.
        TooLarge: The weights are too large to imitate.
    """
    _check_shapes(match.before.inputs)
    feeds = {spec.name for spec in match.before.inputs}
    inside = {name for node in match.before.nodes for name in node.output}
    shared = [spec.name for spec in match.after.inputs if spec.name not in feeds]
    if not inside.issuperset(shared):
        raise CannotProve(f"it reads {min(set(shared) - inside)}, which the original does not")
    _check_size(match, base_dir)
    weights = _weights(match, base_dir)
    fed = {weight.name for weight in weights}
    outputs = tuple(spec.name for spec in match.before.outputs)
    parts = _Parts(model, base_dir, fed)
    return Case(
        match.signature,
        match.kind,
        parts.model(match.before, (*outputs, *shared)),
        parts.model(match.after, outputs),
        match.before.inputs,
        weights,
        outputs,
        tuple(shared),
    )


def distinct(matches: Iterable[Match]) -> dict[str, Match]:
    """The first match of each signature."""
    first: dict[str, Match] = {}
    for match in matches:
        first.setdefault(match.signature, match)
    return first


@dataclass(frozen=True)
class _Parts:
    """What the models of one match have in common."""

    source: ModelProto
    base_dir: Path
    fed: set[str]

    def model(self, subgraph: Subgraph, outputs: Iterable[str]) -> bytes:
        inputs = [unsized(spec.name, spec.dtype, spec.shape) for spec in subgraph.inputs]
        initializers = []
        for constant in subgraph.constants:
            value = stored.of_constant(constant, self.base_dir)
            if constant.name in self.fed:
                inputs.append(unsized(constant.name, value.element, value.shape))
            else:
                initializers.append(stored.to_proto(constant.name, value))
        graph = make_graph(
            subgraph.nodes,
            "match",
            inputs,
            [make_empty_tensor_value_info(name) for name in dict.fromkeys(outputs)],
            initializers,
        )
        made = make_model(
            graph,
            ir_version=self.source.ir_version,
            opset_imports=self.source.opset_import,
            functions=subgraph.functions,
        )
        stand_in(made)
        return bytes(made.SerializeToString())


def _check_shapes(inputs: Iterable[TensorSpec]) -> None:
    for spec in inputs:
        if spec.shape is None or not spec.dtype:
            raise CannotProve(f"the {'type' if spec.shape else 'rank'} of {spec.name} is not known")


def _weights(match: Match, base_dir: Path) -> tuple[Weight, ...]:
    """The constants that both sides can be given any value of; none if `after` derives one."""
    before = {c.name: stored.of_constant(c, base_dir) for c in match.before.constants}
    weights: dict[str, Weight] = {}
    for constant in match.after.constants:
        value = stored.of_constant(constant, base_dir)
        if isinstance(value, Joined):
            names = tuple(part.name for part in _merged(constant))
            for name, part in zip(names, value.parts, strict=True):
                weights[name] = _weight(name, part, free=name in before)
            weights[constant.name] = Weight(
                constant.name, value.element, value.shape, joined=names, axis=value.axis
            )
        elif constant.name in before and _is_weight(value):
            weights[constant.name] = _weight(constant.name, value, free=True)
        elif _is_weight(value):
            return ()
    return tuple(weights.values())


def _merged(constant: gs.Constant) -> tuple[gs.Constant, ...]:
    values = constant._values
    return values.parts if isinstance(values, ConcatValues) else ()


def _is_weight(value: Stored) -> bool:
    return value.element in FLOATS and prod(value.shape) > _SCALAR


def _weight(name: str, value: Stored, *, free: bool) -> Weight:
    if value.nbytes > LARGE and free:
        return Weight(name, value.element, value.shape, free=True)
    values = InMemory(np.array(value.array()))
    return Weight(name, value.element, value.shape, values, free=free)


def _check_size(match: Match, base_dir: Path) -> None:
    constants = (*match.before.constants, *match.after.constants)
    total = sum(stored.of_constant(constant, base_dir).nbytes for constant in constants)
    if total > BUDGET:
        raise TooLarge(f"its weights take {total >> 20} MiB, more than {BUDGET >> 20} MiB")
