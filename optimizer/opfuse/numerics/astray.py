"""Where a conversion to half precision leaves what it computes in fp32; lives in a child process.

The converted model runs twice with the same weights: rounded behind every operator in half
precision, and in fp32. From an output that differs the way goes back along tensors that do,
to the first operator whose inputs are right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from opfuse.graph.inferred import value_types
from opfuse.graph.protos import HALVES
from opfuse.numerics.chunks import LIMIT
from opfuse.numerics.compare import Array, Difference, compare, is_float
from opfuse.numerics.session import CannotRun
from opfuse.numerics.whole import Loaded, Run, Subject

Traced = Mapping[str, Difference]


@dataclass(frozen=True)
class Astray:
    """The operator at which the roundings begin to matter.

    Attributes:
        tensor: What it gives, by its name in the converted graph.
        op: Its operator there.
        found: How far its result is from that in fp32.
        source: Which of its inputs has the largest values.
        reach: The largest of them.
        spread: The standard deviation of them, the smallest over its rows.
    """

    tensor: str
    op: str
    found: Difference
    source: str = ""
    reach: float = 0.0
    spread: float = 0.0

    @property
    def told(self) -> str:
        """What there is to see, in a few words."""
        if not self.source:
            return str(self.found)
        values = f"values up to {self.reach:.3g} that deviate by {self.spread:.2g}"
        return f"{self.found}; {self.source} has {values}"


def astray(
    subject: Subject,
    seed: int,
    rtol: float,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
) -> Astray | None:
    """Return where ``subject``, a converted model, goes astray; None where that cannot be told.

    Args:
        subject: Written with its half precision types.
        seed: Of the inputs, where there are no samples.
        rtol: From which root mean square error on a tensor is wrong.
        shapes: Of the inputs; some are guessed where there are none.
        samples: Inputs.
    """
    model = onnx.load(subject.path, load_external_data=False)
    with TemporaryDirectory() as folder:
        shown = replace(subject, path=_all_shown(model, Path(folder, "shown.onnx")))
        try:
            exact = Loaded(replace(shown, rounds=False), LIMIT, wide=True)
            runs = _runs(exact, seed, shapes or {}, samples)
            rounded = Loaded(replace(shown, rounds=True), LIMIT)
            feeds, expected = runs[0]
            actual = rounded.run(feeds)
        except (CannotRun, ValueError):
            return None
    found = {name: compare(expected[name], actual[name]) for name in expected if name in actual}
    wrong = {name for name, item in found.items() if item.reason or item.rms > rtol}
    return _first(model, found, wrong, expected)


def _runs(
    exact: Loaded,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    samples: Sequence[Mapping[str, Array]],
) -> list[Run]:
    if samples:
        return exact.run_on([exact.widen(sample) for sample in samples[:1]])
    return exact.run_somehow(seed, shapes)


def _all_shown(model: ModelProto, path: Path) -> Path:
    """Write the model with all its floating-point tensors as outputs."""
    types = value_types(model)
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {info.name for info in model.graph.output}
    for name in (name for node in model.graph.node for name in node.output):
        if types.get(name) in {*HALVES, onnx.TensorProto.FLOAT} and name not in known:
            shown.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
    path.write_bytes(shown.SerializeToString())
    return path


def _first(
    model: ModelProto, found: Traced, wrong: Collection[str], values: Mapping[str, Array]
) -> Astray | None:
    """Go back from the output that is worst, along what is wrong, as far as that leads."""
    writers = {name: node for node in model.graph.node for name in node.output}
    ends = [info.name for info in model.graph.output if info.name in wrong]
    if not ends:
        return None
    name, seen = max(ends, key=lambda end: found[end].rms), set()
    while name in writers and name not in seen:
        seen.add(name)
        before = [item for item in writers[name].input if item in wrong]
        if not before:
            return _described(name, writers[name], found[name], values)
        name = max(before, key=lambda item: found[item].rms)
    return None


def _described(
    name: str, node: NodeProto, found: Difference, values: Mapping[str, Array]
) -> Astray:
    """What there is to say of an operator: its largest input, and how little that varies."""
    inputs = [item for item in node.input if item in values and is_float(values[item])]
    inputs = [item for item in inputs if values[item].size and np.isfinite(values[item]).any()]
    if not inputs:
        return Astray(name, node.op_type, found)
    source = max(inputs, key=lambda item: _reach(values[item]))
    array = np.where(np.isfinite(values[source]), values[source], 0.0).astype(np.float64)
    spread = float(array.std(axis=-1).min()) if array.ndim else 0.0
    return Astray(name, node.op_type, found, source, _reach(values[source]), spread)


def _reach(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
