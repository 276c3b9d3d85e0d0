"""Small graphs in ONNX's text format, fused, and compared with what they were.

In the text, ``T`` is the floating-point type under test, ``0.5`` a scalar of it, and ``[0, -1]`` an
int64 vector: ``y = Mul(x, 0.5)``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from opfuse.stages.fuse import Fused, export, fuse, widen
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise

DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64}
TOLERANCE = {np.float32: 2e-5, np.float16: 8e-3, np.float64: 1e-6}
# The norm of ``sum`` as exporters of fp16 write it, in fp32; its last Cast is to be named.
RMS_NORM_WIDE = """
    wide = Cast<to=1>(sum)
    two = Constant<value_float=2.0>()
    square = Pow(wide, two)
    mean = ReduceMean<axes=[-1]>(square)
    epsilon = Constant<value_float=1e-6>()
    variance = Add(mean, epsilon)
    root = Sqrt(variance)
    inverse = Reciprocal(root)
    unit = Mul(wide, inverse)
    narrow = Cast<to=T>(unit)
    y = Mul(gamma, narrow)
"""
_NUMBER = r"-?(?:\d+\.\d*(?:e[-+]?\d+)?|inf)"
_LITERAL = re.compile(rf"\[[-\d, ]*\]|(?<![\w.\-])(?:{_NUMBER})(?![\w.])")
_ARGUMENTS = re.compile(r"\(([^()]*)\)")


def model(
    text: str,
    inputs: str,
    outputs: str = "T y",
    weights: Mapping[str, object] | None = None,
    dtype: str = "float",
    opset: int = 18,
    functions: str = "",
    seed: int = 0,
) -> onnx.ModelProto:
    """A model of the statements ``text``.

    Args:
        text: Statements; literals among the arguments become initializers.
        inputs, outputs: As ``"T[B, 8] x, bool[B] keep"``.
        weights: By name, a shape to draw normal values for, a scalar of ``dtype``, or an array.
        dtype: What ``T`` stands for: float, float16, double, or bfloat16.
        opset: Of the default domain.
        functions: Model-local functions, in the text format.
        seed: Of the weights.
    """
    random = np.random.default_rng(seed)
    found = {name: _array(value, dtype, random) for name, value in (weights or {}).items()}

    def arguments(match: re.Match[str]) -> str:
        return f"({_LITERAL.sub(literal, match[1])})"

    def literal(match: re.Match[str]) -> str:
        name = f"literal_{len(found)}"
        integers = match[0].startswith("[")
        value = np.array(
            [int(item) for item in match[0].strip("[]").split(",") if item.strip()]
            if integers
            else float(match[0]),
            np.int64 if integers else None,
        )
        found[name] = value if integers else _array(float(match[0]), dtype, random)
        return name

    body = _ARGUMENTS.sub(arguments, text)
    typed = [re.sub(r"\bT\b", dtype, part) for part in (inputs, _ranked(outputs), body)]
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    imports += ', "com.microsoft" : 1' if "com.microsoft." in body else ""
    imports += ', "opfuse" : 1' if "opfuse." in body else ""
    made = onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: [{imports}]>\n"
        f"g ({typed[0]}) => ({typed[1]}) {{\n{typed[2]}\n}}\n{functions}"
    )
    made.graph.initializer.extend(_tensor(name, v, dtype) for name, v in found.items())
    return _with_shapes(made)


def _array(value: object, dtype: str, random: np.random.Generator) -> np.ndarray:
    kind = DTYPES.get(dtype, np.float32)
    if isinstance(value, tuple):
        return (random.standard_normal(value) * 0.5).astype(kind)
    return np.asarray(value, kind) if isinstance(value, float) else np.asarray(value)


def _tensor(name: str, value: np.ndarray, dtype: str) -> TensorProto:
    if dtype == "bfloat16" and value.dtype == np.float32:
        return helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, value.ravel())
    return numpy_helper.from_array(value, name)


def _ranked(outputs: str) -> str:
    """Write ``T y`` as a tensor of unknown rank."""
    return re.sub(r"\b(\w+)\s+(\w+)(?=,|$)", r"\1[] \2", outputs)


def _with_shapes(made: onnx.ModelProto) -> onnx.ModelProto:
    """Give the outputs their inferred shapes, and the inner tensors none."""
    # onnx infers nothing through GroupNormalization and calls what follows an error.
    strict = all(node.op_type != "GroupNormalization" for node in made.graph.node)
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=strict, data_prop=True)
    for mine, theirs in zip(made.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(theirs)
    return made


@dataclass(frozen=True)
class Outcome:
    """A model before and after, and what was said about it."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    fused: Fused

    @property
    def ops(self) -> list[str]:
        """The operators that stand in the fused graph, in its order."""
        return [node.op_type for node in self.after.graph.node]

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind was fused, where it was."""
        return {kind: count for kind, count in self.fused.counts.items() if count}

    def node(self, op: str) -> onnx.NodeProto:
        """The one node of type ``op``."""
        (found,) = [node for node in self.after.graph.node if node.op_type == op]
        return found

    def attribute(self, op: str, name: str) -> object:
        """An attribute of the one node of type ``op``."""
        (found,) = [a for a in self.node(op).attribute if a.name == name]
        return helper.get_attribute_value(found)

    def refused(self, kind: str, node: str, reason: str) -> None:
        """Assert that ``kind`` stands nowhere, and that ``node`` is blamed for ``reason``."""
        assert not self.fused.counts[kind], self.ops
        said = [(m.node.split(" ")[0], m.reason) for m in self.fused.misses if m.kind == kind]
        assert any(at == node and reason in why for at, why in said), said

    def refused_at(self, anchor: str, reason: str) -> None:
        """Assert that the candidate that ends in ``anchor`` was left alone for ``reason``."""
        said = [(miss.anchor, miss.reason) for miss in self.fused.misses]
        assert any(at == anchor and reason in why for at, why in said), said

    def same(self, *sizes: Mapping[str, int], seed: int = 0, **feeds: np.ndarray) -> None:
        """Assert equal outputs on random inputs for each choice of the symbolic dimensions."""
        onnx.checker.check_model(self.after, full_check=True)
        sessions = [session(made) for made in (self.before, self.after)]
        for number, dims in enumerate(sizes or ({},)):
            drawn = draw(self.before, dims, seed + number) | feeds
            want, have = (run.run(None, drawn) for run in sessions)
            names = [output.name for output in self.before.graph.output]
            for name, a, b in zip(names, want, have, strict=True):
                compare(f"{name}, sizes {dims}, seed {seed + number}", a, b)


def fuse_model(
    before: onnx.ModelProto,
    vetoes: Mapping[str, str] | None = None,
    library: Collection[str] | None = None,
) -> Outcome:
    """Normalise, fuse, and export; widen first as for the ops of ``library``, if there is one."""
    source = Source(
        Path("model.onnx"), onnx.ModelProto.FromString(before.SerializeToString()), Path()
    )
    fused = fuse(normalise(source), vetoes)
    if library is not None:
        fused = widen(fused, library, Path())
    after = export(fused, source)
    assert source.proto == before
    return Outcome(before, after, fused)


def session(made: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """An onnxruntime session that runs the graph as it is written."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    release = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    # 1.23 mistypes a Cast that does nothing unless its optimizer may remove it.
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL if release > (1, 23) else levels.ORT_ENABLE_BASIC
    )
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def draw(made: onnx.ModelProto, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Random values for every input: normal floats, fair booleans, integers from 0 to 3."""
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in made.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value or dims[d.dim_param] for d in tensor.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if kind == np.bool_:
            feeds[value.name] = random.integers(0, 2, shape).astype(bool)
        elif kind.kind == "i":
            feeds[value.name] = random.integers(0, 4, shape).astype(kind)
        else:
            feeds[value.name] = random.standard_normal(shape).astype(kind)
    return feeds


def compare(what: str, want: np.ndarray, have: np.ndarray) -> None:
    """Assert the same shape, dtype, NaNs, and values within the tolerance of the dtype."""
    assert (want.shape, want.dtype) == (have.shape, have.dtype), what
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(have, want, err_msg=what)
        return
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=1e-3))
    tolerance = TOLERANCE[want.dtype.type] * scale
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance, equal_nan=True, err_msg=what)
