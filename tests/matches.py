"""Hand-made matches: originals as exporters write them, fused forms right and wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, parser

from opfuse.graph.dims import Sym, parse
from opfuse.graph.match import Match, Subgraph, TensorSpec
from opfuse.graph.weights import ConcatValues

ELEMENTS = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "double": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
OPSET = 18
RNG = np.random.default_rng(7)


def nodes(text: str) -> tuple[onnx.NodeProto, ...]:
    """Parse statements of the ONNX text format."""
    function = f'<domain: "t", opset_import: ["" : {OPSET}]> f () => () {{\n{text}\n}}'
    return tuple(parser.parse_function(function).node)


def spec(text: str) -> TensorSpec:
    """``"x: float[batch, 8]"``."""
    name, _, rest = text.partition(":")
    element, _, dims = rest.strip().rstrip("]").partition("[")
    shape = tuple(
        int(d) if d.strip().isdigit() else parse(d.strip()) for d in dims.split(",") if d.strip()
    )
    return TensorSpec(name.strip(), ELEMENTS[element], shape)


def constant(name: str, values, dtype="float32") -> gs.Constant:
    return gs.Constant(name, np.asarray(values, dtype))


def normal(name: str, *shape: int, dtype="float32") -> gs.Constant:
    return constant(name, RNG.standard_normal(shape), dtype)


def joined(name: str, parts, axis: int) -> gs.Constant:
    return gs.Constant(name, ConcatValues(tuple(parts), axis, Path()))


def match(
    before: str,
    after: str,
    inputs: list[str],
    outputs: list[str],
    constants=(),
    *,
    functions: str = "",
    signature: str = "s",
) -> Match:
    """A match whose two sides may use any of ``constants``."""
    specs, out = tuple(map(spec, inputs)), tuple(map(spec, outputs))
    defined = tuple(parser.parse_function(functions) for functions in filter(None, [functions]))

    def side(text: str) -> Subgraph:
        parsed = nodes(text)
        used = {name for node in parsed for name in node.input}
        read = tuple(s for s in specs if s.name in used)
        return Subgraph(parsed, read, out, tuple(c for c in constants if c.name in used), defined)

    return Match("Test", f"{signature}/fused", signature, side(before), side(after), signature)


class Deadly(Sym):
    """A size that kills the process that evaluates it, as native code may."""

    def evaluate(self, mapping):
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("still alive")


def opsets(opset: int = OPSET) -> onnx.ModelProto:
    """A model for its opsets alone."""
    return helper.make_model(
        helper.make_graph([], "g", [], []),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("opfuse", 1)],
    )
