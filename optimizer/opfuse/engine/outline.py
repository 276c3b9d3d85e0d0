"""Cuts a lowered model into the steps of a bundle and the models of its engines; writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opfuse.engine.alike import merged
from opfuse.engine.copies import copies
from opfuse.engine.cut import Copy, Cut, Segment, View, cut
from opfuse.engine.tensors import Typed, types_of
from opfuse.engine.views import views
from opfuse.errors import EngineError
from opfuse.fusions.activation_body import KIND
from opfuse.graph.dist_collective import NATIVE, every_node
from opfuse.graph.protos import label, type_name
from opfuse.runtime import abi
from opfuse.runtime.copies import Move
from opfuse.runtime.schedule import (
    CopyStep,
    EngineStep,
    PluginStep,
    Schedule,
    Step,
    Value,
    ViewStep,
)


@dataclass(frozen=True)
class Outline:
    """The steps of a bundle, and what its engines are built from.

    ``models`` are in the order of their first runs in the schedule, ``types`` those of every
    tensor, ``left`` the reason for every plugin node that was given back to TensorRT; ``values``
    gives the bytes of a weight by its name.
    """

    schedule: Schedule
    models: tuple[ModelProto, ...]
    types: Mapping[str, Typed]
    left: Mapping[str, str]
    values: Callable[[str], bytes]


def outline(
    model: ModelProto, base_dir: Path, library: Path | None, *, around_attention: bool = True
) -> Outline:
    """Cut ``model``; its plugin nodes that do not pay become calls of their body.

    Args:
        model: From stages/lower.
        base_dir: A private folder, which holds the external weights of the model.
        library: The plugin library; None where the model has no plugin node.
        around_attention: Whether attention that is no plugin may be cut off from the rest.

    Raises:
        EngineError: The model cannot be cut, or speaks to other ranks by layers of TensorRT.
    """
    if any(node.op_type == NATIVE for node in every_node(model)):
        raise EngineError(
            f"the model has {NATIVE}, for which a bundle has no communicator",
            "use a plugin library with AllReduce and --lower plugin, or --backend tensorrt",
        )
    types = types_of(model)
    ranks = {name: (item.element, len(item.shape)) for name, item in types.items()}
    moves = {} if library is None else copies(model, types)
    plan = cut(
        model,
        ranks,
        _Check(types, library).reason,
        around_attention=around_attention,
        views=views(model, types),
        copies=moves,
    )
    weigh = _Weights(model, base_dir)
    made, runs = _engines(model, plan, types, weigh)
    schedule = _schedule(model, plan, runs, moves, types)
    return Outline(schedule, tuple(made), types, plan.left, weigh.values)


def _engines(
    model: ModelProto, plan: Cut, types: Mapping[str, Typed], weigh: _Weights
) -> tuple[list[ModelProto], list[EngineStep]]:
    """The models of the engines, and what each segment does with which of them."""
    segments = plan.segments
    for segment in segments:
        _check_known((*segment.inputs, *segment.outputs), types)
    infos = {n: types[n].info(n) for s in segments for n in (*s.inputs, *s.outputs)}
    infos |= {item.name: item for item in (*model.graph.input, *model.graph.output)}
    return merged(model, segments, types, infos, weigh.values)


class _Check:
    """Asks the plugin library whether it takes a node, before the graph is cut there."""

    def __init__(self, types: Mapping[str, Typed], library: Path | None) -> None:
        self._types = types
        self._library = None if library is None else abi.load(library)

    def reason(self, node: NodeProto) -> str:
        """Why the plugin cannot run this node; empty where it can."""
        names = [*node.input, *node.output]
        unknown = [name for name in names if name not in self._types]
        if self._library is None:
            return "no plugin library is loaded"
        if unknown:
            return f"the type or rank of {unknown[0]!r} is not known"
        elements = [self._types[name].element for name in names]
        try:
            with abi.Plugin(self._library, node.op_type, attributes(node)) as plugin:
                for at in range(len(names)):
                    if not plugin.supports(at, elements, len(node.input)):
                        spelt = ", ".join(map(type_name, elements))
                        return f"the plugin does not take the types {spelt}"
        except abi.PluginError as error:
            return str(error)
        return ""


def attributes(node: NodeProto) -> dict[str, float | int | str]:
    """The attributes of a plugin node as the C ABI takes them."""
    found: dict[str, float | int | str] = {}
    for item in node.attribute:
        if item.name in ("plugin_namespace", "plugin_version", KIND):
            continue
        value = helper.get_attribute_value(item)
        found[item.name] = value.decode() if item.type == AttributeProto.STRING else value
    return found


def _check_known(names: Sequence[str], types: Mapping[str, Typed]) -> None:
    for name in names:
        if name not in types:
            raise EngineError(
                f"the type or rank of {name!r}, at which the model would be cut, is not known",
                "use another backend, or --lower leave, which makes one segment",
            )


def _schedule(
    model: ModelProto,
    plan: Cut,
    runs: Sequence[EngineStep],
    moves: Mapping[int, Move],
    types: Mapping[str, Typed],
) -> Schedule:
    graph = model.graph
    weights = {item.name for item in graph.initializer}
    steps: list[Step] = []
    left = iter(runs)
    for step in plan.steps:
        if isinstance(step, Segment):
            steps.append(next(left))
        elif isinstance(step, View):
            steps.append(ViewStep((step.source,), (step.name,), step.target))
        elif isinstance(step, Copy):
            steps.append(CopyStep(tuple(moves[index] for index in step.nodes)))
        else:
            node = graph.node[step]
            ends = tuple(node.input), tuple(node.output)
            steps.append(PluginStep(node.op_type, label(node), attributes(node), *ends))
    inputs = [item.name for item in graph.input if item.name not in weights]
    outputs = [item.name for item in graph.output]
    touched = dict.fromkeys(name for step in steps for name in (*step.inputs, *step.outputs))
    outer = {*inputs, *outputs, *weights}
    schedule = Schedule(
        inputs=tuple(_value(name, types) for name in inputs),
        outputs=tuple(_value(name, types) for name in outputs),
        between=tuple(_value(name, types) for name in touched if name not in outer),
        constants=tuple(_value(name, types) for name in touched if name in weights),
        steps=tuple(steps),
    )
    missing = [name for name in outputs if name not in touched or name in (*inputs, *weights)]
    if missing:
        raise EngineError(
            f"output {missing[0]!r} is an input or a constant, which a bundle cannot return",
            "use another backend, or leave the output out of the model",
        )
    return schedule


def _value(name: str, types: Mapping[str, Typed]) -> Value:
    _check_known([name], types)
    typed = types[name]
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in typed.shape)
    return Value(name, typed.element, shape)


class _Weights:
    """The values of a model's weights, of which some lie in files."""

    def __init__(self, model: ModelProto, base_dir: Path) -> None:
        self._base_dir = base_dir
        self._tensors = {item.name: item for item in model.graph.initializer}

    def values(self, name: str) -> bytes:
        """The bytes of a weight."""
        tensor = TensorProto()
        tensor.CopyFrom(self._tensors[name])
        if tensor.data_location == TensorProto.EXTERNAL:
            load = onnx.external_data_helper.load_external_data_for_tensor
            load(tensor, str(self._base_dir))
            tensor.data_location = TensorProto.DEFAULT
        found: bytes = numpy_helper.to_array(tensor).tobytes()
        return found
