"""What a model computes on seeded inputs, in a few numbers that are the same on every machine.

The model is computed in double precision: processors then differ in the 15th digit and the 9th is
kept, while a changed weight or epsilon moves the first eight.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from opfuse.graph.protos import all_nodes, opset_of, type_name
from opfuse.numerics import sample
from opfuse.numerics.chunks import LIMIT, Chunked
from opfuse.numerics.compare import FLOATS, Array, is_float
from opfuse.numerics.retype import convert, retype
from opfuse.numerics.session import CannotRun
from opfuse.numerics.stored import Converted
from opfuse.numerics.whole import Loaded, Subject, take_weights

PROJECTIONS = 4
# Digits that are kept, and the relative difference that is none, in units of the root mean square.
EXACT, COARSE = (8, 1e-7), (3, 1e-2)

# Values of this size and so many times the next smaller one are apart from the others.
_FAR, _GAP = 5e3, 10.0

_DRAWS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
    | {"RandomUniform", "RandomUniformLike"}
)
# No kernel for doubles, or no doubles in the operator's definition.
_NO_KERNEL = re.compile(
    r"NOT_IMPLEMENTED : Could not find an implementation for (\w+)\("
    r"|Type 'tensor\(double\)' of input parameter \(.*\) of operator \((\w+)\)"
)
_WORD = (1 << 64) - 1
_NARROW = FLOATS - {TensorProto.DOUBLE}


@dataclass(frozen=True)
class Drawn:
    """An input: its shape, and the SHA-256 of its bytes."""

    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Summary:
    """An output in a few numbers.

    ``finite`` is the count of its finite values, ``rms`` the root mean square of those that do not
    stand far above the others; ``projections`` are the sums of these under seeded signs over the
    square root of their count. Where values stand far above, the logarithm of their size and their
    projections follow, and then the projections of the signs of infinities, in units of ``rms``.
    """

    dtype: str
    shape: tuple[int, ...]
    finite: int
    rms: float
    projections: tuple[float, ...]


@dataclass(frozen=True)
class Fingerprint:
    """One model on inputs drawn from one seed.

    ``computed_in`` is "fp64", or "as stored" where an operator knows no doubles: then only
    ``rtol`` of a value is certain. ``not_run`` says why there is nothing.
    """

    inputs: Mapping[str, Drawn]
    outputs: Mapping[str, Summary]
    computed_in: str = "fp64"
    rtol: float = EXACT[1]
    not_run: str = ""


def take(
    subject: Subject, seed: int, shapes: Mapping[str, tuple[int, ...]], limit: int = LIMIT
) -> Fingerprint:
    """Run the model on inputs drawn for it, in ``shapes`` where they are given."""
    try:
        model = onnx.load(subject.path, load_external_data=False)
        _refuse_draws(model)
        items = sample.inputs(model.graph)
        tries = sample.assignments(items, shapes)
        types = {info.name: info.type.tensor_type.elem_type for info in model.graph.output}
    except (CannotRun, ValueError) as reason:
        return Fingerprint({}, {}, not_run=str(reason))
    reasons = []
    for sizes in tries:
        try:
            feeds = sample.draw(items, sizes, seed)
            outputs, exact = _outputs(subject, feeds, limit)
        except (CannotRun, ValueError) as reason:
            reasons.append(str(reason))
            continue
        digits, rtol = EXACT if exact else COARSE
        return Fingerprint(
            {name: _drawn(array) for name, array in feeds.items()},
            {n: summary(a, type_name(types[n]), seed, digits) for n, a in outputs.items()},
            "fp64" if exact else "as stored",
            rtol,
        )
    return Fingerprint({}, {}, not_run=reasons[0])


def _refuse_draws(model: ModelProto) -> None:
    for node in all_nodes(model.graph.node):
        if node.op_type in _DRAWS:
            raise CannotRun(f"it draws random numbers ({node.op_type})")


def _outputs(
    subject: Subject, feeds: Mapping[str, Array], limit: int
) -> tuple[dict[str, Array], bool]:
    """The outputs, and whether they are exact."""
    try:
        return _in_double(subject, feeds, limit), True
    except CannotRun:
        return Loaded(subject, limit).run(feeds), False


def _in_double(subject: Subject, feeds: Mapping[str, Array], limit: int) -> dict[str, Array]:
    """The outputs of the model with every float a double.

    Operators that onnxruntime has no kernel for, such as Erf, run in ONNX's own evaluator; which
    these are shows when a piece of the model is opened.
    """
    wide = {n: convert(a, TensorProto.DOUBLE) if is_float(a) else a for n, a in feeds.items()}
    alone: set[str] = set()
    while True:
        try:
            return _chunked(subject, limit, frozenset(alone)).run(wide)
        except CannotRun as refusal:
            found = _NO_KERNEL.search(str(refusal))
            more = set(_owners(subject, found[1] or found[2])) - alone if found else None
            if not more:
                raise
            alone |= more


def _chunked(subject: Subject, limit: int, alone: frozenset[str]) -> Chunked:
    model = onnx.load(subject.path, load_external_data=False)
    weights = take_weights(model, subject)
    exact = {
        name: Converted(value, TensorProto.DOUBLE) if value.element in _NARROW else value
        for name, value in weights.items()
    }
    return Chunked(retype(model, _NARROW, TensorProto.DOUBLE), exact, limit, alone)


def _owners(subject: Subject, op: str) -> Iterator[str]:
    """The operators of the model that are ``op``, or may hold it in their definition."""
    model = onnx.load(subject.path, load_external_data=False)
    opset = opset_of(model)
    ops = {node.op_type for node in model.graph.node}
    if op in ops:
        yield op
        return
    local = {function.name for function in model.functions}
    yield from (name for name in ops if name in local or _has_body(name, opset))


def _has_body(op: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return False
    made_of = ("has_function", "has_context_dependent_function")  # the stubs do not know these
    return any(getattr(schema, name, False) for name in made_of)


def _drawn(array: Array) -> Drawn:
    return Drawn(tuple(array.shape), hashlib.sha256(array.tobytes()).hexdigest())


def summary(array: Array, dtype: str, seed: int, digits: int) -> Summary:
    """Sum up an output of any shape; ``dtype`` is its type in the model.

    Raises:
        CannotRun: It is no tensor of numbers.
    """
    if not hasattr(array, "dtype") or array.dtype.kind in "OSU":
        raise CannotRun("an output is no tensor of numbers")
    values = array.astype(np.float64).ravel()
    finite = np.isfinite(values)
    count = int(finite.sum())
    known = np.where(finite, values, 0.0)
    far = _far(known)
    rms, sums = _summed(np.where(far, 0.0, known), count - int(far.sum()), seed)
    unit = rms or 1.0
    if far.any():
        size, parts = _summed(np.where(far, known, 0.0), int(far.sum()), seed)
        sums += [unit * (math.log(size) - math.log(unit)), *(unit * (p / size) for p in parts)]
    if (infinite := np.isinf(values)).any():
        _, parts = _summed(np.where(infinite, np.sign(values), 0.0), int(infinite.sum()), seed)
        sums += [unit * part for part in parts]
    places = digits - (math.floor(math.log10(rms)) if rms > 0 else 0)
    kept = tuple(round(_bounded(value), places) + 0.0 for value in sums)
    return Summary(dtype, tuple(array.shape), count, round(rms, places), kept)


def _far(values: Array) -> Array:
    """Which values stand far above the others, as what a mask fills in does.

    A root mean square with -1e9 in it would hide whatever happens to a logit of 1.
    """
    sizes = np.abs(values)
    if sizes.max(initial=0.0) < _FAR:
        return np.zeros(values.size, bool)
    ordered = np.unique(sizes[sizes > 0])
    gaps = (ordered[1:] >= _FAR) & (ordered[1:] / _GAP >= ordered[:-1])
    least = ordered[1:][gaps][0] if gaps.any() else np.inf
    return np.asarray(sizes >= least)


def _summed(values: Array, count: int, seed: int) -> tuple[float, list[float]]:
    """The root mean square of ``count`` values, the others being 0, and their projections."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    values = values / largest  # the lowest number squared is beyond what a double holds
    # fsum rounds once: how many values a processor adds at a time does not matter.
    rms = largest * math.sqrt(math.fsum(values * values) / max(count, 1))
    unit = largest / math.sqrt(max(count, 1))
    sums = [unit * math.fsum(values * signs(values.size, seed + n)) for n in range(PROJECTIONS)]
    return rms, sums


def _bounded(value: float) -> float:
    """A sum of the largest doubles may be beyond them, and JSON has no infinity."""
    most = sys.float_info.max
    return min(max(value, -most), most)


def signs(count: int, seed: int) -> Array:
    """1 and -1 in a seeded order that no library decides: the top bits of SplitMix64."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64((seed << 32) + 1 & _WORD)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.where(z >> np.uint64(63), -1.0, 1.0)
