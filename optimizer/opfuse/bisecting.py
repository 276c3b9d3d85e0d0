"""Finds the first operator at which an engine leaves its model.

An engine shows its outputs alone. So the model gets one more output in its middle, is built again
in the same way, and compared; what that finds halves what is left. A dozen builds find one operator
in thousands. Another output is a fence for fusions at that place: what goes wrong only inside
of a fusion may then be told of its last operator.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse.config import Config
from opfuse.files import scratch
from opfuse.progress import Progress

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from opfuse.numerics.whole import Comparison
    from opfuse.stages.load import Source

_OF_MAGIC = {b"PK\x03\x04": ("segmented", ".opfuse"), b"vtrt": ("tensorrt-rtx", ".engine")}


@dataclass(frozen=True)
class Place:
    """A tensor that may become an output, and the operator that writes it, as messages name it."""

    value: ValueInfoProto
    operator: str


def bisected(
    a: Path, b: Path, comparison: Comparison, config: Config, progress: Progress | None = None
) -> Comparison:
    """The comparison of an engine and a model, with the first operator that differs."""
    engine, model = (a, b) if b.suffix == ".onnx" else (b, a)
    with (progress or Progress()).stage("bisect"):
        return replace(comparison, first_wrong=bisect(engine, model, config, progress))


def bisect(engine: Path, model: Path, config: Config, progress: Progress | None = None) -> str:
    """The first operator whose result an engine of this model has wrong, as messages name it.

    Empty where no engine with one more output has anything wrong.

    Args:
        engine: Tells which backend builds; the report beside it, with which options.
        model: What the engine was built from.
        config: Shapes, tolerance, and seed of the comparison; the lock of the builds, and the
            options that nothing beside the engine tells.
        progress: Told about each build.

    Raises:
        OpfuseError: A model cannot be built or run.
    """
    from opfuse.stages.load import load
    from opfuse.stages.verify import options_of

    source, progress = load(model), progress or Progress()
    with engine.open("rb") as file:
        backend, suffix = _OF_MAGIC.get(file.read(4), ("tensorrt", ".engine"))
    shapes = dict(config.opt_shapes)
    built: dict[str, Any] = {f"{level}_shapes": shapes for level in ("min", "opt", "max")}
    built |= options_of(engine)
    config = replace(config, backend=backend, prove=False, layers=False, reports=(), **built)

    with scratch() as folder:
        _copy_weights(source, folder)

        def is_wrong(place: Place) -> bool:
            progress.step(f"up to {place.operator}")
            files = folder / "with-output.onnx", folder / f"with-output{suffix}"
            return _is_wrong(source.proto, place, *files, config, shapes)

        found = first_wrong(_places(source.proto), is_wrong)
    return "" if found is None else found.operator


def first_wrong(places: Sequence[Place], is_wrong: Callable[[Place], bool]) -> Place | None:
    """The first place that is wrong, where all behind it are too; None where the last is right."""
    if not places or not is_wrong(places[-1]):
        return None
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_wrong(places[middle]) else (middle + 1, high)
    return places[high]


def _places(model: ModelProto) -> list[Place]:
    """What the operators of the graph write, floats of known rank, in the order of the graph."""
    import onnx

    from opfuse.graph.protos import label

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    floats = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16")}
    return [
        Place(known[name], label(node))
        for node in graph.node
        if node.op_type not in ("Constant", "ConstantOfShape")
        for name in node.output
        if name in known and known[name].type.tensor_type.elem_type in floats
    ]


def _copy_weights(source: Source, folder: Path) -> None:
    """Copy the files that weights lie in, once for all builds: onnx takes no links of any kind."""
    from opfuse.graph.protos import all_tensors

    entries = [entry for tensor in all_tensors(source.proto) for entry in tensor.external_data]
    for place in {entry.value for entry in entries if entry.key == "location"}:
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.base_dir / place, target)


def _is_wrong(
    model: ModelProto,
    place: Place,
    file: Path,
    engine: Path,
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    """Whether an engine of the model with this output has another value there than the model.

    The engine is built for the shapes of ``config``, and runs in ``shapes`` where they are given.
    """
    from onnx import ModelProto

    from opfuse import pipeline

    name = place.value.name
    longer = ModelProto()
    longer.CopyFrom(model)
    if all(item.name != name for item in longer.graph.output):
        longer.graph.output.append(place.value)
    file.write_bytes(longer.SerializeToString())
    pipeline.run(replace(config, model=file, output=engine), "build")
    comparison = pipeline.verify(file, engine, replace(config, bisect=False, opt_shapes=shapes))
    difference = comparison.outputs.get(name)
    return bool(comparison.refused) or (
        difference is not None and not difference.within(comparison.tolerance)
    )
