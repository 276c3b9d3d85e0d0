"""One case: written from its seed, fused in process, run, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from benchmarks.fuzzing.blocks import feeds, write
from benchmarks.fuzzing.plans import OPSETS, Plan, draw
from benchmarks.fuzzing.writer import Breaks
from opfuse.stages.fuse import Fused, export, fuse
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise

_TOLERANCE = {False: 3e-5, True: 2e-2}  # of the largest value, by whether a plan has fp16 in it
# A fusion that needs another first: where that one was refused, its line speaks for both.
_NEEDS = {
    "AddRmsNorm": {"RmsNorm"},
    "AddLayerNorm": {"LayerNormalization"},
    "gate_up_merge": {"GatedAct", "GemmAct", "Gelu"},
    "qkv_merge": {"FlashAttention", "Rope", "RmsNorm"},
    "GatedAct": {"GemmAct", "Gelu"},
}
# What stands there where a wider fusion was not possible.
_NARROWER = {
    "FlashAttention": ("MaskedSoftmax",),
    "AddRmsNorm": ("RmsNorm",),
    "AddLayerNorm": ("LayerNormalization", "RmsNorm"),
    "LayerNormalization": ("RmsNorm",),  # what a norm is behind its centring
    "GatedAct": ("GemmAct",),
    "GemmAct": ("Gelu",),
    "gate_up_merge": ("GemmAct",),
}


@dataclass(frozen=True)
class Verdict:
    """What came of one case.

    ``result`` is ``fused`` (all that the canonical spelling has), ``narrower`` (a smaller fusion in
    the place of one), ``refused`` (a fusion less, with its reason), or a failure: ``counts``,
    ``silent``, ``wrong``, ``crash``, or ``generator`` where the case itself is at fault.
    """

    kind: str
    index: int
    label: str
    result: str
    detail: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    model: bytes = b""

    @property
    def failed(self) -> bool:
        """Tell whether opfuse, or the generator, did what it must not."""
        return self.result not in ("fused", "refused", "narrower")


@dataclass(frozen=True)
class Canonical:
    """What the canonical spelling of a plan fuses to, and what it computes."""

    counts: Mapping[str, int]
    outputs: Mapping[str, np.ndarray]


def spelling(seed: int, index: int, opsets: tuple[int, ...] = OPSETS) -> Verdict:
    """Judge one random spelling: it must fuse and compute what the canonical one does."""
    random = np.random.default_rng((seed, 0, index))
    plan = draw(random, opsets)
    model = write(plan, random)
    return _judged("spelling", index, plan.family, model, lambda: _spelling(plan, model))


def mutant(seed: int, index: int, opsets: tuple[int, ...] = OPSETS) -> Verdict:
    """Judge one broken block: whatever is refused must be said, and no number may change."""
    plan = draw(np.random.default_rng((seed, 1, index)), opsets)
    random = np.random.default_rng((seed, 2, index))
    breaks = Breaks()
    write(plan, np.random.default_rng((seed, 3, index)), breaks)
    names = sorted(set(breaks.places))
    name = names[random.integers(len(names))]
    chosen = Breaks(name, int(random.integers(breaks.places.count(name))))
    model = write(plan, np.random.default_rng((seed, 3, index)), chosen)
    return _judged("mutant", index, name, model, lambda: _mutant(plan, model))


def save(verdict: Verdict, seed: int, folder: Path) -> Path:
    """Write the model of a failed case into ``folder`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{verdict.kind}-{seed}-{verdict.index}-{verdict.result}.onnx"
    path.write_bytes(verdict.model)
    return path


def _judged(kind, index, label, model, judge) -> Verdict:
    try:
        result, detail, counts = judge()
    except Exception as error:
        result, detail, counts = "crash", f"{type(error).__name__}: {error}", {}
    verdict = Verdict(kind, index, label, result, detail, counts)
    if not verdict.failed:
        return verdict
    return Verdict(kind, index, label, result, detail, counts, model.SerializeToString())


def _spelling(plan: Plan, model: onnx.ModelProto) -> tuple[str, str, Mapping[str, int]]:
    standard = canonical(plan)
    fused, after = _fused(model)
    have = _run(after, plan)
    wrong = _differ(plan, standard.outputs, have)
    if wrong:
        own = _differ(plan, standard.outputs, _run(model, plan))
        return ("generator" if own else "wrong"), f"{plan}: {wrong}", fused.counts
    if dict(fused.counts) != dict(standard.counts):
        said = [f"{m.kind}: {m.node} {m.reason}" for m in fused.misses]
        change = _change(standard.counts, fused.counts)
        return "counts", f"{plan}: {change}; said: {said}", fused.counts
    return "fused", "", fused.counts


def _mutant(plan: Plan, model: onnx.ModelProto) -> tuple[str, str, Mapping[str, int]]:
    standard = canonical(plan)
    try:
        want = _run(model, plan)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        return "generator", f"{plan}: {error}", {}
    fused, after = _fused(model)
    wrong = _differ(plan, want, _run(after, plan))
    if wrong:
        return "wrong", f"{plan}: {wrong}", fused.counts
    change = {k: fused.counts[k] - count for k, count in standard.counts.items()}
    lost = [kind for kind, difference in change.items() if difference < 0]
    said = {miss.kind for miss in fused.misses if miss.node and miss.reason}
    silent = [kind for kind in lost if not said & {kind, *_NEEDS.get(kind, ())}]
    if not silent:
        return ("refused" if lost else "fused"), "", fused.counts
    more = {kind for kind, difference in change.items() if difference > 0}
    if all(more & set(_NARROWER.get(kind, ())) for kind in silent):
        return "narrower", "", fused.counts
    text = _change(standard.counts, fused.counts)
    return "silent", f"{plan}: {silent} of {text}; said: {sorted(said)}", fused.counts


@lru_cache(maxsize=4096)
def canonical(plan: Plan) -> Canonical:
    """Return what the canonical spelling of ``plan`` gives, from memory where it is known."""
    model = write(plan)
    fused, _ = _fused(model)
    return Canonical(fused.counts, _run(model, plan))


def _fused(model: onnx.ModelProto) -> tuple[Fused, onnx.ModelProto]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    source = Source(Path("fuzz.onnx"), copy, Path())
    fused = fuse(normalise(source))
    return fused, export(fused, source)


def _run(model: onnx.ModelProto, plan: Plan) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = feeds(plan)
    constants = {tensor.name for tensor in model.graph.initializer}
    names = (value.name for value in model.graph.input)
    needed = {name: given[name] for name in names if name not in constants}
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, needed), strict=True))


def _differ(plan: Plan, want: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]) -> str:
    """Return where two runs differ, or nothing."""
    for name, a in want.items():
        b = have[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{name} is {b.dtype}{b.shape}, want {a.dtype}{a.shape}"
        scale = float(np.abs(a[np.isfinite(a)]).max(initial=1e-3))
        if not np.allclose(a, b, rtol=0, atol=_TOLERANCE[plan.half] * scale, equal_nan=True):
            far = float(np.nanmax(np.abs(a.astype(np.float64) - b)))
            return f"{name} is off by {far:.3g} of {scale:.3g}"
    return ""


def _change(want: Mapping[str, int], have: Mapping[str, int]) -> str:
    changed = {kind: (want[kind], have[kind]) for kind in want if want[kind] != have[kind]}
    return ", ".join(f"{kind} {a} -> {b}" for kind, (a, b) in changed.items())
