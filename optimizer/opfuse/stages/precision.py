"""Fused model in fp32 -> the same in fp16 or bf16, compared with the original on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs
from onnx import ModelProto

from opfuse import child
from opfuse.config import Config
from opfuse.errors import CheckFailed, InputError
from opfuse.files import scratch
from opfuse.graph.facts import Fact
from opfuse.graph.inferred import value_types
from opfuse.graph.pattern import OPFUSE
from opfuse.graph.weights import DerivedValues
from opfuse.numerics import stored
from opfuse.numerics.astray import Astray
from opfuse.numerics.chunks import LIMIT
from opfuse.numerics.compare import TOLERANCE, Array
from opfuse.numerics.handover import Handover
from opfuse.numerics.whole import Comparison
from opfuse.precision.convert import Conversion, Subject
from opfuse.precision.opset import raise_opset, spell_out
from opfuse.precision.probe import probe
from opfuse.precision.result import Precision
from opfuse.precision.samples import read
from opfuse.precision.types import LOW
from opfuse.progress import Progress
from opfuse.stages.load import Source

if TYPE_CHECKING:
    from opfuse.engine.backend import EngineInfo
    from opfuse.stages.fuse import Fused

_TASK = "the conversion"
_LARGEST = 5.0  # of one value, in tolerances
_SHOWN = 12  # layers in a message
_FRESH = 1  # the ranges are those of the seed itself: the result has to hold for other inputs
_OTHER = {
    "fp16": "--precision bf16 has fewer digits and more range",
    "bf16": "--precision fp16 has more digits and less range",
}


def prepare(fused: Fused, config: Config) -> bool:
    """Write the graph as the type wants it; True where it has changed and is to be exported."""
    low = LOW[config.precision]
    raised = raise_opset(fused.graph, low)
    return spell_out(fused.graph, fused.facts, low) or raised


def convert(
    source: Source, fused: Fused, model: ModelProto, config: Config, progress: Progress
) -> Precision:
    """Convert the graph of ``fused`` in place to ``config.precision``.

    Args:
        source: The original.
        fused: The fused graph; export it again afterwards.
        model: What it was exported to.
        config: Precision, calibration, seed, and shapes.
        progress: Told about the steps.

    Raises:
        InputError: The calibration inputs do not fit, or no inputs run the model.
        EngineError: The model kills the process that runs it.
        TimeLimit: ``config.time_limit`` has passed.
    """
    _complete(fused, model)
    functions = {f.name: f for f in model.functions if f.domain == OPFUSE}
    subject = Subject(fused.graph, fused.facts, functions, fused.user, source.base_dir)
    conversion = Conversion(subject, config.precision, config.io_precision)
    samples = read(config.calibrate, source.proto.graph)
    measured, names = probe(model, conversion.measured())
    with scratch() as folder:
        merged = _derived(fused.graph, source.base_dir)
        handed = Handover(folder).subject(measured, source.base_dir, merged)
        largest = _in_child(
            "opfuse.numerics.ranges:measure",
            (handed, samples, config.seed, dict(config.opt_shapes)),
            config,
            progress,
        )
    ranges: dict[str, float] = {}
    if isinstance(largest, str):
        if config.precision == "fp16":
            raise InputError(
                f"{source.path}: no activation can be measured: {largest}",
                "give inputs that run with --calibrate, or take --precision bf16, which has the "
                "range of fp32",
            )
    else:
        ranges = dict(zip(names, largest, strict=True))
    return conversion.apply(ranges, _told(config, samples, bool(ranges)))


def judge(
    source: Source,
    fused: Fused,
    model: ModelProto,
    precision: Precision,
    config: Config,
    progress: Progress,
) -> Precision:
    """Compare the converted ``model`` with the original; return ``precision`` with the outcome.

    Raises:
        CheckFailed: They differ by more than the type's tolerance.
    """
    samples = read(config.calibrate, source.proto.graph)
    rtol = config.rtol if config.rtol is not None else TOLERANCE[LOW[config.precision]]
    with scratch() as folder:
        handover = Handover(folder)
        merged = _derived(fused.graph, source.base_dir)
        converted = handover.subject(model, source.base_dir, merged)
        pair = (handover.subject(source.proto, source.base_dir), replace(converted, rounds=True))
        shapes = dict(config.opt_shapes)
        comparison: Comparison = _in_child(
            "opfuse.numerics.whole:compare_models",
            (*pair, config.seed + _FRESH, rtol, shapes, LIMIT, samples),
            config,
            progress,
        )
        if _passed(comparison, rtol):
            return replace(precision, comparison=comparison)
        where: Astray | None = None
        if not comparison.refused:
            asked = (converted, config.seed + _FRESH, rtol, shapes, samples)
            where = _in_child("opfuse.numerics.astray:astray", asked, config, progress)
    error = comparison.refused or f"relative error {comparison.max_rel_err:.1e}"
    raise CheckFailed(
        f"{source.path}: in {config.precision} the model does not compute what it did: {error}"
        f"{_place(where, fused)}",
        f"--rtol allows more, {_OTHER[config.precision]}; "
        "--no-prove writes the result all the same",
    )


def _place(where: Astray | None, fused: Fused) -> str:
    """Name the layer of the user's model that a conversion goes wrong at."""
    if where is None:
        return ""
    owner = fused.user.owner(where.tensor, where.op)
    return f"; it begins at {owner.label if owner else where.tensor}: {where.told}"


def check_engine(engine: EngineInfo, precision: Precision) -> None:
    """Refuse an engine that computes products in fp32 although none of the rules keeps them there.

    Raises:
        CheckFailed: There is one; the layers are named.
    """
    wrong = [
        f"{layer.name} ({layer.type})"
        for layer in engine.fp32_products
        if precision.names.isdisjoint(layer.nodes)
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckFailed(
            f"the engine was asked for in {precision.precision}, and these layers compute in fp32: "
            f"{', '.join(wrong[:_SHOWN])}{more}",
            "report it with the model; --precision keep builds it as it is",
        )


def _passed(comparison: Comparison, rtol: float) -> bool:
    """Whether every output is as far from the original as rounding explains.

    Errors of thousands of roundings are spread normally: their root mean square is held to the
    tolerance, and the largest of 1e5 values is 4.4 times that.
    """
    return not comparison.refused and all(
        not found.reason and found.rms <= rtol and found.max_rel <= _LARGEST * rtol
        for found in comparison.outputs.values()
    )


def _complete(fused: Fused, model: ModelProto) -> None:
    """Let ONNX tell the types that our own analysis does not know, as behind an If."""
    facts = fused.facts
    unknown = [
        tensor
        for node in fused.graph.nodes
        for tensor in node.outputs
        if facts.dtype(tensor) is None and not tensor.is_empty()
    ]
    types = value_types(model) if unknown else {}
    for tensor in unknown:
        if types.get(tensor.name):
            fact = Fact(facts.shape(tensor), types[tensor.name], facts.value(tensor))
            facts.remember(tensor, fact)


def _in_child(function: str, arguments: tuple[Any, ...], config: Config, progress: Progress) -> Any:
    return child.run(
        function,
        arguments,
        task=_TASK,
        time_limit=config.time_limit,
        on_event=lambda event: progress.step(str(event["text"]), 0, 0),
    )


def _derived(graph: gs.Graph, base_dir: Path) -> Mapping[str, stored.Stored]:
    """The weights that are not written anywhere yet."""
    return {
        name: stored.of_constant(tensor, base_dir)
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, DerivedValues)
    }


def _told(config: Config, samples: Sequence[Mapping[str, Array]], measured: bool) -> str:
    if not measured:
        return "not measured: no input that was drawn runs the model"
    if samples:
        return f"{len(samples)} samples of {', '.join(path.name for path in config.calibrate)}"
    return f"inputs drawn from seed {config.seed}"
