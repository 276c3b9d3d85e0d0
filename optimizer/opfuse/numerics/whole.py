"""Runs two whole models on the same inputs and compares their outputs; lives in a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from opfuse import child
from opfuse.graph.protos import HALVES, all_nodes, all_tensors, is_external
from opfuse.numerics import sample, stored
from opfuse.numerics.chunks import LIMIT, Chunked
from opfuse.numerics.compare import (
    FLOATS,
    Array,
    Difference,
    compare,
    is_float,
    is_half,
    tolerance,
)
from opfuse.numerics.retype import convert, retype
from opfuse.numerics.rounding import cast_types, rounding
from opfuse.numerics.session import CannotRun
from opfuse.numerics.settle import settle
from opfuse.numerics.stored import Converted, Stored

_VOID = "all that it gives on the inputs drawn for it is NaN or infinite"
_SMALL = 64 << 20  # bytes of weights up to which a second run costs nothing

Run = tuple[Mapping[str, Array], Mapping[str, Array]]
"""Inputs and outputs by name."""


@dataclass(frozen=True)
class Subject:
    """A model to run.

    Attributes:
        path: The file of its protobuf message; values in external files stay there.
        base_dir: What external files are relative to.
        merged: Weights that exist in no file yet, by name.
        rounds: Run it in fp32, and round behind every operator in half precision.
    """

    path: Path
    base_dir: Path
    merged: Mapping[str, Stored]
    rounds: bool = False


@dataclass(frozen=True)
class Layer:
    """What one step of a bundle wrote, against the reference."""

    step: str
    tensor: str
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs.

    Attributes:
        outputs: The difference of each output, by the first model's name for it.
        tolerance: The relative error that is rounding, for the coarsest type in the models.
        not_run: Why nothing was compared; then there are no outputs.
        refused: Why the second model does not run although the first does.
        excused: Outputs beyond the tolerance on which the first model, computed in float32, is as
            far from itself: half precision decides nothing there.
        layers: What every step wrote, where that was asked for.
        first_wrong: The first operator at which an engine differs, where that was looked for.
    """

    outputs: Mapping[str, Difference]
    tolerance: float
    not_run: str = ""
    refused: str = ""
    excused: frozenset[str] = frozenset()
    layers: tuple[Layer, ...] = ()
    first_wrong: str | None = None

    @property
    def first_apart(self) -> Layer | None:
        """The first step beyond the tolerance."""
        apart = (item for item in self.layers if not item.difference.within(self.tolerance))
        return next(apart, None)

    @property
    def max_rel_err(self) -> float:
        """The largest relative error over the outputs."""
        return max((item.max_rel for item in self.outputs.values()), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal within the tolerance."""
        return not self.refused and all(
            name in self.excused or item.within(self.tolerance)
            for name, item in self.outputs.items()
        )


def compare_models(
    original: Subject,
    other: Subject,
    seed: int,
    rtol: float | None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: int = LIMIT,
    samples: Sequence[Mapping[str, Array]] = (),
) -> Comparison:
    """Run both models on ``samples``, or on inputs made for the first, in ``shapes`` if given.

    Without samples small models run a second time, with all sizes 1.
    """
    try:
        first = Loaded(original, limit)
        runs = first.run_on(samples) if samples else first.run_somehow(seed, shapes or {})
    except (CannotRun, ValueError) as reason:
        return Comparison({}, 0.0, not_run=str(reason))
    child.emit({"model": "fused", "text": "the fused model"})
    allowed = rtol if rtol is not None else tolerance(first.elements)
    try:
        second = Loaded(other, limit)
        if rtol is None:
            allowed = tolerance(first.elements | second.elements)
        results = [paired(e, second.run(second.adapt(f, first))) for f, e in runs]
    except CannotRun as reason:
        return Comparison({}, allowed, refused=str(reason))
    del second
    return judge(original, first, runs, results, allowed, limit)


def judge(
    original: Subject,
    first: Loaded,
    runs: Sequence[Run],
    results: Sequence[Mapping[str, Array]],
    allowed: float,
    limit: int = LIMIT,
) -> Comparison:
    """Compare ``results`` with those of ``runs``, which ``first`` gave for ``original``.

    Where no output has a finite value, no number was compared: that is told as a model not run.
    """
    differences = _worst(runs, results)
    beyond = [name for name, found in differences.items() if not found.within(allowed)]
    if not beyond and all(_is_void(values) for _, made in runs for values in made.values()):
        return Comparison({}, allowed, not_run=_VOID)
    if not beyond or HALVES.isdisjoint(first.elements):
        return Comparison(differences, allowed)
    child.emit({"model": "original", "text": "the original model in float32"})
    precise = Loaded(original, limit, wide=True)
    excused = frozenset(n for n in beyond if _is_excused(n, runs, results, precise, allowed))
    return Comparison(differences, allowed, excused=excused)


def _is_void(values: Array) -> bool:
    """Whether there are only NaN and infinities: what comes of them is the same whatever it was."""
    return is_float(values) and values.size > 0 and not np.isfinite(values).any()


def _worst(runs: Sequence[Run], results: Sequence[Mapping[str, Array]]) -> dict[str, Difference]:
    """The difference of each output, the largest over the runs."""
    worst: dict[str, Difference] = {}
    for (_, expected), actual in zip(runs, results, strict=True):
        for name, values in expected.items():
            found = compare(values, actual[name])
            worst[name] = max(worst.get(name, found), found, key=lambda item: item.max_rel)
    return worst


def _is_excused(
    name: str,
    runs: Sequence[Run],
    results: Sequence[Mapping[str, Array]],
    precise: Loaded,
    allowed: float,
) -> bool:
    """Whether the original itself is as far from what it computes in float32."""
    for (feeds, expected), actual in zip(runs, results, strict=True):
        truth = precise.run(precise.widen(feeds))[name]
        outcome = settle([expected[name]], [actual[name]], lambda: [truth], allowed)  # noqa: B023
        if outcome.reason or outcome.open:
            return False
    return True


class Loaded:
    """A model whose values stay in their files until a piece needs them.

    Raises:
        CannotRun: From the constructor and every run: it cannot be run here.
    """

    def __init__(self, subject: Subject, limit: int, *, wide: bool = False) -> None:
        model = onnx.load(subject.path, load_external_data=False)
        if model.graph.sparse_initializer:
            raise CannotRun("sparse initializers are not supported here")
        weights = take_weights(model, subject)
        self.elements = {value.element for value in weights.values()} | _graph_types(model.graph)
        # onnxruntime has no bfloat16 kernels for the CPU; float32 has the same range.
        self._narrow = HALVES if wide or subject.rounds else frozenset({TensorProto.BFLOAT16})
        if not self._narrow.isdisjoint(self.elements | cast_types(model)):
            if subject.rounds:
                model = rounding(model)
            else:
                model = retype(model, self._narrow, TensorProto.FLOAT)
            weights = {name: self._widened(value) for name, value in weights.items()}
        self.model, self.weights = model, weights
        self.graph = model.graph
        self.outputs = [info.name for info in model.graph.output]
        self.small = sum(value.nbytes for value in weights.values()) <= _SMALL
        self._runner = Chunked(model, weights, limit)

    def _widened(self, value: Stored) -> Stored:
        return Converted(value, TensorProto.FLOAT) if value.element in self._narrow else value

    def widen(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs drawn for the narrow model, in the types that this one takes."""
        return {n: convert(a, TensorProto.FLOAT) if is_half(a) else a for n, a in feeds.items()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name."""
        return self._runner.run(feeds)

    def run_on(self, samples: Sequence[Mapping[str, Array]]) -> list[Run]:
        """Run with every one of ``samples``."""
        return [(feeds, self.run(feeds)) for feeds in samples]

    def run_somehow(self, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> list[Run]:
        """Run with the first sizes that the model takes, and with all sizes 1 if it is small."""
        items = sample.inputs(self.graph)
        tries = list(sample.assignments(items, shapes))
        reasons = []
        for sizes in tries:
            try:
                feeds = sample.draw(items, sizes, seed)
                runs: list[Run] = [(feeds, self.run(feeds))]
            except (CannotRun, ValueError) as reason:
                reasons.append(str(reason))
                continue
            if self.small and not shapes:
                others = [single for single in sample.singles(items) if single != sizes]
                runs += [run for single in others for run in self._run_single(items, single, seed)]
            return runs
        raise CannotRun(reasons[0])

    def _run_single(
        self, items: Sequence[sample.Input], sizes: sample.Sizes, seed: int
    ) -> list[Run]:
        """Not every model takes a sequence of one."""
        try:
            feeds = sample.draw(items, sizes, seed)
            return [(feeds, self.run(feeds))]
        except (CannotRun, ValueError):
            return []

    def adapt(self, feeds: Mapping[str, Array], first: Loaded) -> dict[str, Array]:
        """The same inputs for this model: paired by name where the names agree, else in order.

        Floats are cast, so that a model can be compared with its conversion to another precision.

        Raises:
            CannotRun: It reads more inputs, so some have no values.
        """
        mine, theirs = _input_types(self.graph), _input_types(first.graph)
        same_names = set(mine) == set(theirs) or len(mine) != len(theirs)
        renamed = feeds if same_names else dict(zip(mine, (feeds[n] for n in theirs), strict=True))
        read = {name for node in all_nodes(self.graph.node) for name in node.input}
        if absent := [name for name in mine if name in read and name not in renamed]:
            raise CannotRun(f"it reads {', '.join(absent)}, which the first does not")
        return {
            name: convert(array, mine[name]) if _is_cast(array, mine.get(name)) else array
            for name, array in renamed.items()
        }


def _is_cast(array: Array, element: int | None) -> bool:
    return element in FLOATS and is_float(array)


def take_weights(model: ModelProto, subject: Subject) -> dict[str, Stored]:
    """Take the values out of the message; what is left of an initializer is its type."""
    weights = {}
    for tensor in model.graph.initializer:
        name = tensor.name
        merged = subject.merged.get(name)
        weights[name] = merged if merged is not None else stored.of_tensor(tensor, subject.base_dir)
        tensor.CopyFrom(TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims))
    for tensor in all_tensors(model):
        if is_external(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(subject.base_dir))
            tensor.data_location = TensorProto.DEFAULT
    return weights


def _graph_types(graph: GraphProto) -> set[int]:
    return {info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}


def _input_types(graph: GraphProto) -> dict[str, int]:
    """The element type of each input that a caller gives."""
    given = {tensor.name for tensor in graph.initializer}
    return {
        info.name: info.type.tensor_type.elem_type for info in graph.input if info.name not in given
    }


def paired(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> Mapping[str, Array]:
    """The outputs under the first model's names: paired by name where they agree, else in order."""
    if set(expected) == set(actual):
        return actual
    if len(expected) != len(actual):
        raise CannotRun(f"it has {len(actual)} outputs, the original {len(expected)}")
    return dict(zip(expected, actual.values(), strict=True))
