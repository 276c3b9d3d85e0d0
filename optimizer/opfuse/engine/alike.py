"""Segments that compute the same become one engine, with the weights that differ as its inputs.

The 24 norms of BERT-base between its products are one computation on 24 pairs of vectors. With
TensorRT for RTX 1.4 every execution context takes 73 MB of the device, however small its engine is
(H100), so 25 engines took 2143 MB where 2 take 434. Matrices stay in engines of their own: TensorRT
lays them out when it builds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from opfuse.engine.cut import Segment
from opfuse.engine.parts import extract, reads
from opfuse.engine.tensors import Typed
from opfuse.graph.protos import subgraphs
from opfuse.runtime.schedule import EngineStep

_WIDEST = 1 << 16  # elements of a weight that may become an input
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
# What may read a weight that is no constant; others might want one.
_TAKE_ANY = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Cast", "Identity", "Neg"),
        *("LayerNormalization", "RMSNormalization"),
    )
)

Functions = Mapping[tuple[str, str], FunctionProto]


@dataclass(frozen=True)
class _Part:
    """A segment under names that tell nothing of its place, its weights without their values.

    ``weights`` are the model's names of them, in the order of the initializers of ``bare``.
    """

    segment: Segment
    bare: ModelProto
    weights: tuple[str, ...]


def merged(
    model: ModelProto,
    segments: Sequence[Segment],
    types: Mapping[str, Typed],
    infos: Mapping[str, ValueInfoProto],
    values: Callable[[str], bytes],
) -> tuple[list[ModelProto], list[EngineStep]]:
    """The models of the engines in the order of their first runs, and every segment's run of one.

    Args:
        model: The cut model.
        segments: In the order in which they run.
        types: Of all tensors at the ends of segments.
        infos: The same as ONNX writes it; segments that are like no other keep these names.
        values: The bytes of a weight by its name.
    """
    families = _Families(model, types, values).of(segments)
    models: list[ModelProto] = []
    numbers: dict[int, int] = {}
    runs = []
    for segment in segments:
        family = families.get(segment)
        if family is None:
            ends = ([infos[n] for n in names] for names in (segment.inputs, segment.outputs))
            models.append(extract(model, segment.nodes, *ends))
            runs.append(EngineStep.alone(_name(len(models) - 1), segment.inputs, segment.outputs))
            continue
        if id(family) not in numbers:
            numbers[id(family)] = len(models)
            models.append(family.model())
        runs.append(family.run(segment, _name(numbers[id(family)])))
    return models, runs


def _name(number: int) -> str:
    return f"engines/{number}"


class _Families:
    """Finds the segments of one model that compute the same."""

    def __init__(
        self, model: ModelProto, types: Mapping[str, Typed], values: Callable[[str], bytes]
    ) -> None:
        self._types, self._values = types, values
        self._tensors = {item.name: item for item in model.graph.initializer}
        graph = helper.make_graph(model.graph.node, "", [], [])
        graph.initializer.extend(map(_without_values, self._tensors.values()))
        self._light = helper.make_model(
            graph, opset_imports=model.opset_import, functions=model.functions
        )
        self._light.ir_version = model.ir_version

    def of(self, segments: Sequence[Segment]) -> dict[Segment, _Family]:
        """The family of every segment that has one."""
        alike: dict[bytes, list[_Part]] = {}
        for part in filter(None, map(self._part, segments if len(segments) > 1 else ())):
            alike.setdefault(part.bare.SerializeToString(deterministic=True), []).append(part)
        found: dict[Segment, _Family] = {}
        for parts in alike.values():
            free = _free(parts[0].bare) if len(parts) > 1 else frozenset()
            kin: dict[tuple[bytes, ...], list[_Part]] = {}
            for part in parts:
                kin.setdefault(self._fixed(part, free), []).append(part)
            for own in kin.values():
                family = _Family(own, free, self._tensors, self._values)
                found |= {part.segment: family for part in own if len(own) > 1}
        return found

    def _part(self, segment: Segment) -> _Part | None:
        """The segment; None where it has subgraphs, which read names from outside."""
        ends = (
            [self._types[n].info(n) for n in names] for names in (segment.inputs, segment.outputs)
        )
        part = extract(self._light, segment.nodes, *ends)
        if any(True for node in part.graph.node for _ in subgraphs(node)):
            return None
        inside = {item.name: item for item in part.graph.initializer}
        read = dict.fromkeys(name for node in part.graph.node for name in node.input)
        weights = [name for name in read if name in inside]
        names = {name: f"in_{at}" for at, name in enumerate(segment.inputs)}
        names |= {name: f"weight_{at}" for at, name in enumerate(weights)}
        names |= {name: f"out_{at}" for at, name in enumerate(segment.outputs)}
        for number, node in enumerate(part.graph.node):
            node.name = f"{node.op_type}_{number}"
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
            for own in filter(None, node.output):
                names.setdefault(own, f"t_{len(names)}")
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]
        del part.graph.initializer[:]
        part.graph.initializer.extend(inside[name] for name in weights)
        for item in (*part.graph.input, *part.graph.output, *part.graph.initializer):
            item.name = names[item.name]
        return _Part(segment, part, tuple(weights))

    def _fixed(self, part: _Part, free: Collection[str]) -> tuple[bytes, ...]:
        """What the weights are that have to be the same in all parts of one engine."""
        found = []
        for item, name in zip(part.bare.graph.initializer, part.weights, strict=True):
            if item.name not in free:
                found.append(self._values(name) if _is_small(item) else self._place(name))
        return tuple(found)

    def _place(self, name: str) -> bytes:
        """The hash of a large weight, or of where it lies in a file."""
        copy = TensorProto()
        copy.CopyFrom(self._tensors[name])
        copy.ClearField("name")
        return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()


class _Family:
    """Segments that are one engine."""

    def __init__(
        self,
        parts: Sequence[_Part],
        free: Collection[str],
        tensors: Mapping[str, TensorProto],
        values: Callable[[str], bytes],
    ) -> None:
        self._parts = {part.segment: part for part in parts}
        self._first, self._tensors = parts[0], tensors
        self._ports = [
            at
            for at, item in enumerate(parts[0].bare.graph.initializer)
            if item.name in free and len({values(part.weights[at]) for part in parts}) > 1
        ]

    def model(self) -> ModelProto:
        """The engine's model: weights that differ are inputs, the others in it."""
        made = ModelProto()
        made.CopyFrom(self._first.bare)
        del made.graph.initializer[:]
        for at, item in enumerate(self._first.bare.graph.initializer):
            if at in self._ports:
                made.graph.input.append(Typed(item.data_type, tuple(item.dims)).info(item.name))
            else:
                made.graph.initializer.append(self._tensors[self._first.weights[at]])
                made.graph.initializer[-1].name = item.name
        return made

    def run(self, segment: Segment, engine: str) -> EngineStep:
        """A segment's run of the engine of this name."""
        weights = self._parts[segment].weights
        return EngineStep(
            engine,
            (*segment.inputs, *(weights[at] for at in self._ports)),
            segment.outputs,
            (
                *(f"in_{at}" for at in range(len(segment.inputs))),
                *(f"weight_{at}" for at in self._ports),
            ),
            tuple(f"out_{at}" for at in range(len(segment.outputs))),
        )


def _without_values(item: TensorProto) -> TensorProto:
    return TensorProto(name=item.name, data_type=item.data_type, dims=item.dims)


def _is_small(item: TensorProto) -> bool:
    size: int = prod(item.dims)
    return size <= _WIDEST


def _free(part: ModelProto) -> frozenset[str]:
    """The weights that TensorRT takes as inputs too."""
    functions = {(item.domain, item.name): item for item in part.functions}
    constants = {item.name for item in part.graph.initializer}
    return frozenset(
        item.name
        for item in part.graph.initializer
        if item.data_type in _FLOATS
        and _is_small(item)
        and _changed(part.graph.node, {item.name}, constants, functions) is not None
    )


def _changed(
    nodes: Iterable[NodeProto],
    changed: Collection[str],
    constants: Collection[str],
    functions: Functions,
) -> set[str] | None:
    """What is no constant any more where ``changed`` are none; None where one has to be one."""
    found, fixed = set(changed), set(constants)
    for node in nodes:
        names = set(reads(node))
        is_fixed = names <= fixed
        if is_fixed:
            fixed.update(node.output)
        if names.isdisjoint(found):
            continue
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            slots = list(zip(function.input, node.input, strict=False))
            inner = _changed(
                function.node,
                {slot for slot, name in slots if name in found},
                {slot for slot, name in slots if name in fixed},
                functions,
            )
            if inner is None:
                return None
            outputs = zip(function.output, node.output, strict=False)
            found.update(name for slot, name in outputs if slot in inner)
        elif node.domain or node.op_type not in _TAKE_ANY:
            return None
        elif is_fixed:
            found.update(node.output)
    return found
