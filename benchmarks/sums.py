"""What TensorRT for RTX computes in inside of an operator whose ends are fp16 or bf16.

`--precision` lets some sums and exponentials be in the low type (precision/rules.py), which is
right only where they are computed in fp32 inside. Each case is one operator in one engine, run on
values whose sum, squares, or exponential are beyond fp16, and on a row of 65,536 values of one
sign, in which a sum kept in the low type is off by far more than a rounding. A case passes where
the result is finite and as near the exact one as a result that is rounded once. The exit code is 1
where one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from benchmarks.measure import versions, write
from opfuse.engine import gpu, network
from opfuse.engine.backend import Request
from opfuse.runtime import Engine
from opfuse.runtime.tensorrt import import_module

Values = np.ndarray[Any, Any]
Exact = Callable[[Values], Values]
TYPES = {"fp16": ("float16", np.dtype(np.float16), 2.0**-11)}
TYPES["bf16"] = ("bfloat16", np.dtype(ml_dtypes.bfloat16), 2.0**-8)
_HALF = 0.5  # the mean of what is drawn between 0 and 1
_ROUNDINGS = 1.6  # of the result: one, and what the order of the sum leaves in fp32


@dataclass(frozen=True)
class Case:
    """One operator: its node, its input, and what is exact.

    Attributes:
        node: In the syntax of ``onnx.parser``, from ``x`` to ``y``; what it reads beside ``x`` is
            an initializer.
        shape: Of ``x``.
        middle: The mean of ``x``.
        exact: ``y`` in fp64.
        deviation: The standard deviation of ``x``.
    """

    node: str
    shape: tuple[int, ...]
    middle: float
    exact: Exact
    deviation: float = 1.0


def cases() -> Iterator[Case]:
    """Means, sums, lengths, and norms over rows and over images."""
    for last in (300, 4096, 65536):
        rows = (8, last)
        yield Case("ReduceMean (x, last)", rows, 3000.0, mean(-1))
        yield Case("ReduceSum (x, last)", rows, _HALF, total(-1))
        yield Case("ReduceL1 (x, last)", rows, _HALF, total(-1))
        yield Case("ReduceL2 (x, last)", rows, 200.0, length(-1))
    for side in (56, 512):
        image = (2, 16, side, side)
        yield Case("ReduceMean (x, image)", image, 3000.0, mean(2, 3))
        yield Case("GlobalAveragePool (x)", image, 3000.0, mean(2, 3))
        yield Case("ReduceL2 (x, image)", image, 200.0, length(2, 3))
        yield Case("InstanceNormalization (x, one16, nil16)", image, 100.0, norm(2, 3))
    turned = (2, 56, 56, 16)  # channels last, as convnextv2 writes its response norm
    yield Case("ReduceL2 (x, middle)", turned, 200.0, length(1, 2))
    yield Case("ReduceMean (x, middle)", turned, 3000.0, mean(1, 2))
    layer = "LayerNormalization <epsilon = 1e-12> (x, one4096, nil4096)"
    for middle, deviation in ((100.0, 1.0), (0.0, 2000.0), (0.0, 1e-3)):
        yield Case(layer, (8, 4096), middle, norm(-1), deviation)
    for last in (9, 4096):
        yield Case("Softmax (x)", (64, last), 0.0, softmax)
        yield Case("Softmax (x)", (64, last), 3000.0, softmax)
    for op, exact in POINTWISE.items():
        yield Case(f"{op} (x)", (64, 4096), _HALF, exact)
    for op in ("Softplus", "Sigmoid", "Elu"):
        yield Case(f"{op} (x)", (64, 4096), 30.0, POINTWISE[op])
    pooled = "AveragePool <kernel_shape = [56, 56]> (x)"
    yield Case(pooled, (2, 16, 56, 56), 3000.0, mean(2, 3))


def softmax(x: Values) -> Values:
    """Over the last axis."""
    odds = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(odds / odds.sum(-1, keepdims=True))


POINTWISE: dict[str, Exact] = {
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Exp": np.exp,
    "Acos": np.arccos,
    "Asin": np.arcsin,
    "Atan": np.arctan,
    "Tanh": np.tanh,
}


def mean(*axes: int) -> Exact:
    """The mean over ``axes``, which stay."""
    return lambda x: np.asarray(x.mean(axes, keepdims=True))


def total(*axes: int) -> Exact:
    """The sum over ``axes`` of what is not negative."""
    return lambda x: np.asarray(x.sum(axes, keepdims=True))


def length(*axes: int) -> Exact:
    """The root of the sum of squares over ``axes``."""
    return lambda x: np.asarray(np.sqrt((x * x).sum(axes, keepdims=True)))


def norm(*axes: int) -> Exact:
    """A normalisation over ``axes``."""
    return lambda x: (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)


def main() -> int:
    """Run every case in both types."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build-only", action="store_true", help="where there is no GPU")
    only = parser.parse_args().build_only
    if not only and gpu.absent():
        print(f"not run: {gpu.absent()}", file=sys.stderr)
        return 3
    rows: list[dict[str, Any]] = []
    for precision in TYPES:
        for case in cases():
            row = {"type": precision, "node": case.node, "shape": case.shape}
            row |= {"mean": case.middle, "deviation": case.deviation}
            row |= measure(case, precision, only)
            rows.append(row)
            error = "built" if only else f"{row['error']:8.2e} {row['allowed']:8.2e} {row['ok']}"
            values = f"{case.middle:g} +- {case.deviation:g}"
            print(
                f"{precision} {case.node:58} {list(case.shape)!s:18} {values:12} {error}",
                flush=True,
            )
    if only:
        return 0
    facts = {"versions": versions(["opfuse"]), "gpu": str(gpu.current()), "rows": rows}
    print(write("sums", facts))
    return int(not all(row["ok"] for row in rows))


def measure(case: Case, precision: str, build_only: bool) -> dict[str, Any]:
    """The largest error of one case, relative to the exact value's size."""
    _, dtype, unit = TYPES[precision]
    values = np.random.default_rng(0).standard_normal(case.shape)
    values = case.middle + case.deviation * values
    if case.middle == _HALF:  # of one sign
        values = np.random.default_rng(0).random(case.shape)
    x = values.astype(dtype)
    with tempfile.TemporaryDirectory() as name:
        source, path = Path(name, "sum.onnx"), Path(name, "sum.engine")
        onnx.save(model(case, precision), source)
        network.build(import_module("tensorrt_rtx"), "tensorrt-rtx", Request(source, path, {}))
        if build_only:
            return {}
        with Engine.load(path) as engine:
            (found,) = engine.run({"x": x}).values()
    exact = case.exact(x.astype(np.float64))
    size = np.maximum(np.abs(exact), 1.0 if np.abs(exact).max() > 1 else np.abs(exact).max())
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(np.asarray(found).astype(np.float64) - exact) / size))
    return {"error": error, "allowed": _ROUNDINGS * unit, "ok": error <= _ROUNDINGS * unit}


def model(case: Case, precision: str) -> onnx.ModelProto:
    """The one operator, typed: nothing is fused or converted."""
    kind, dtype, _ = TYPES[precision]
    inside = ", ".join(map(str, case.shape))
    made = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 22]> one ({kind}[{inside}] x) => ({kind} y) '
        f"{{ y = {case.node} }}"
    )
    axes = {"last": [-1], "image": [2, 3], "middle": [1, 2]}
    weights = {name: np.array(value, np.int64) for name, value in axes.items()}
    for size in (16, 4096):
        weights |= {f"one{size}": np.ones(size, dtype), f"nil{size}": np.zeros(size, dtype)}
    read = set(made.graph.node[0].input)
    for name, value in weights.items():
        if name in read:
            made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return onnx.shape_inference.infer_shapes(made)


if __name__ == "__main__":
    sys.exit(main())
